# Reading the host: PCI functions, the pool, VMs. Everything leaves here as dictionaries of plain values.
# Must never change anything.

# The keys of PCI properties, as GUID and number: names may be unknown to an older build, numbers only have no value.
$script:PropertyKeys = @{
    LocationPaths = '{A45C254E-DF1C-4EFD-8020-67D146A850E0} 37'
    ProblemCode = '{4340A6C5-93FA-4706-972C-7B648008A5A7} 3'
    DeviceType = '{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} 1'
    BaseClass = '{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} 3'
    SubClass = '{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} 4'
    InterruptSupport = '{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} 14'
    InterruptMessageMaximum = '{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} 15'
    BarTypes = '{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} 16'
    AcsCompatibleUpHierarchy = '{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} 31'
    RequiresReservedMemoryRegion = '{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} 34'
    OnPostPath = '{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} 37'
    SerialNumber = '{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} 40'
    # Unproven: not seen in a capture. Absent, the NUMA node is not known, which nothing rests on.
    NumaNode = '{540B947E-8B40-45BC-A8A2-6A0B894CBDA2} 3'
}

# Problem codes come as numbers, as an enum, or as the enum's text.
$script:ProblemTexts = @{
    CM_PROB_NONE = 0; CM_PROB_FAILED_START = 10; CM_PROB_NORMAL_CONFLICT = 12; CM_PROB_NEED_RESTART = 14
    CM_PROB_DISABLED = 22; CM_PROB_DEVICE_NOT_THERE = 24; CM_PROB_FAILED_INSTALL = 28; CM_PROB_HARDWARE_DISABLED = 29
    CM_PROB_FAILED_ADD = 31; CM_PROB_FAILED_POST_START = 43; CM_PROB_PHANTOM = 45
}

function Get-Problem($Code) {
    if ($Code -is [string] -and $script:ProblemTexts.ContainsKey($Code)) { return [uint64]$script:ProblemTexts[$Code] }
    return Get-Number $Code
}

# Properties of several devices in one call: instance id -> name of the key above -> value. A key that a device or this
# build lacks is not in it.
function Get-Property([string[]] $InstanceIds, [string[]] $Names) {
    $found = @{}
    if ($InstanceIds.Count -eq 0) { return $found }
    $keys = @()
    $known = @{}
    foreach ($name in $Names) {
        $key = $script:PropertyKeys[$name]
        $keys += $key
        $known[$key] = $name
        # What comes back carries the friendly name where the build knows one.
        foreach ($family in 'DEVPKEY_Device_', 'DEVPKEY_PciDevice_') { $known[$family + $name] = $name }
    }
    $known['DEVPKEY_Device_Numa_Node'] = 'NumaNode'
    $values = @(Get-PnpDeviceProperty -InstanceId $InstanceIds -KeyName $keys -ErrorAction Stop)
    foreach ($value in $values) {
        $device = Get-Text (Get-Field $value 'InstanceId')
        $name = $null
        foreach ($field in 'KeyName', 'Key') {
            # One source writes two blanks before the number.
            $key = [regex]::Replace([string](Get-Field $value $field), ' +', ' ')
            if ($null -eq $name -and $known.ContainsKey($key)) { $name = $known[$key] }
        }
        $data = Get-Field $value 'Data'
        if ($null -eq $device -or $null -eq $name -or $null -eq $data) { continue }
        if (-not $found.ContainsKey($device)) { $found[$device] = @{} }
        $found[$device][$name] = $data
    }
    return $found
}

# The PCI location path among a device's location paths; an ACPI one may stand before or after it.
function Select-LocationPath($Paths) {
    foreach ($path in @($Paths)) {
        if ($path -is [string] -and $path -cmatch $script:PathForm) { return $path }
    }
    return $null
}

# Groups the functions of one physical card: its location path with the last function number zeroed.
function Get-CardKey([string] $Path) {
    return $Path.Substring(0, $Path.Length - 3) + '00)'
}

# What is known of a function that the host has, or nothing where it has no place.
$script:FunctionKeys = @('LocationPaths', 'BaseClass', 'SubClass', 'ProblemCode')

function ConvertTo-HostFunction($Node, $Properties) {
    $id = [string](Get-Field $Node 'InstanceId')
    $of = @{}
    if ($Properties.ContainsKey($id)) { $of = $Properties[$id] }
    $path = Select-LocationPath $of['LocationPaths']
    if ($null -eq $path) { return $null }
    $problem = Get-Problem (Get-Field $Node 'ConfigManagerErrorCode')
    if ($null -eq $problem) { $problem = Get-Problem $of['ProblemCode'] }
    [ordered]@{
        location_path = $path
        instance_id = $id
        base_class = Get-Number $of['BaseClass']
        sub_class = Get-Number $of['SubClass']
        problem = $problem
        status = Get-Text (Get-Field $Node 'Status')
        name = Get-Text (Get-Field $Node 'FriendlyName')
        class = Get-Text (Get-Field $Node 'Class')
        service = Get-Text (Get-Field $Node 'Service')
        manufacturer = Get-Text (Get-Field $Node 'Manufacturer')
    }
}

# The instance id that was last seen at a location path. Only to save the listing of all of a machine's devices, which
# takes seconds: whatever it says is looked at again before it is used.
$script:KnownIds = @{}

# Instance ids of devices that the last listing showed as present and that did not say where they are.
$script:Unreadable = @()

# PCI functions that the host itself has, by location path.
function Get-HostFunction {
    $nodes = @(Get-PnpDevice -PresentOnly -ErrorAction Stop |
            Where-Object { [string](Get-Field $_ 'InstanceId') -like 'PCI\*' })
    # Every machine has PCI devices. While Windows rearranges them a listing can be short or empty.
    if ($nodes.Count -eq 0) { Stop-Request 'NotThere' 'the listing of devices shows no PCI device at all' }
    $ids = @()
    foreach ($node in $nodes) { $ids += [string](Get-Field $node 'InstanceId') }
    $properties = Get-Property $ids $script:FunctionKeys
    $functions = @{}
    $script:KnownIds = @{}
    $script:Unreadable = @()
    foreach ($node in $nodes) {
        $function = ConvertTo-HostFunction $node $properties
        if ($null -eq $function) {
            $script:Unreadable += [string](Get-Field $node 'InstanceId')
            continue
        }
        $functions[$function.location_path] = $function
        $script:KnownIds[$function.location_path] = $function.instance_id
    }
    return $functions
}

# The function that the host has at one path, or nothing. The device with the known id is asked for alone, and must say
# that it is at that path now; that there is none is said only after a listing of all.
function Get-HostFunctionAt([string] $Path) {
    $id = $script:KnownIds[$Path]
    if ($null -ne $id) {
        $function = $null
        try {
            $nodes = @(Get-PnpDevice -InstanceId (Confirm-InstanceId $id) -PresentOnly -ErrorAction Stop)
            if ($nodes.Count -eq 1 -and [string](Get-Field $nodes[0] 'InstanceId') -ceq $id) {
                $function = ConvertTo-HostFunction $nodes[0] (Get-Property @($id) $script:FunctionKeys)
            }
        } catch {
            # Its error for a device that is not there looks like others.
            $function = $null
        }
        if ($null -ne $function -and $function.location_path -ceq $Path) { return $function }
    }
    return (Get-HostFunction)[$Path]
}

# Functions that were taken from the host. Not a list of free ones: those that VMs have are in it, too.
# All of them, filtered here: older builds have no filter, and the newer ones take an empty one for none.
function Get-PoolFunction {
    $functions = @()
    $native = Get-NativePool
    foreach ($device in @(Get-VMHostAssignableDevice -ErrorAction Stop)) {
        if ($null -eq $device) { continue }
        $path = Get-Text (Get-Field $device 'LocationPath')
        $functions += [ordered]@{
            location_path = $path
            instance_id = Get-Text (Get-Field $device 'InstanceID')
            base_class = $null
            native_pool = $native[[string]$path]
        }
    }
    return , $functions
}

# Pools that somebody made below the root pool: a cluster hands out what is in them by itself. Location path -> pool's name.
# Devices keep being in the root pool's list. A build without such pools lacks the command or does not know their type.
# The module of 2020 can make pools and cannot say what is in them: with one of them nobody knows which devices are free.
function Get-NativePool {
    $members = @{}
    foreach ($lack in 'Get-VMResourcePool', 'Get-VMResourcePool -ResourcePoolType') {
        if ($script:Absent -contains $lack) { return $members }
    }
    $tells = $script:Absent -notcontains 'Get-VMHostAssignableDevice -ResourcePoolName'
    try {
        $pools = @(Get-VMResourcePool -ResourcePoolType 'PciExpress' -ErrorAction Stop)
    } catch {
        # The type is not known here.
        if ([string]$_.FullyQualifiedErrorId -like 'CannotConvertArgument*' -or
            [string]$_.FullyQualifiedErrorId -like 'ParameterArgument*') { return $members }
        throw
    }
    foreach ($pool in $pools) {
        $name = Get-Text (Get-Field $pool 'Name')
        if ($null -eq $name -or $name -ieq 'Primordial') { continue }
        if (-not $tells) {
            Stop-Request 'Refused' ('this host has the pool of devices ' + $name + ', and its Hyper-V module cannot say ' +
                'which devices are in it, so none is known to be free: remove the pool, or update the host')
        }
        foreach ($device in @(Get-VMHostAssignableDevice -ResourcePoolName (Confirm-PoolName $name) -ErrorAction Stop)) {
            $path = Get-Text (Get-Field $device 'LocationPath')
            if ($null -ne $path) { $members[$path] = $name }
        }
    }
    return $members
}

function Get-Settings($Vm) {
    [ordered]@{
        stop_action = Get-Text (Get-Field $Vm 'AutomaticStopAction')
        guest_cache_types = Get-Flag (Get-Field $Vm 'GuestControlledCacheTypes')
        mmio_low_bytes = Get-Number (Get-Field $Vm 'LowMemoryMappedIoSpace')
        mmio_high_bytes = Get-Number (Get-Field $Vm 'HighMemoryMappedIoSpace')
        dynamic_memory = Get-Flag (Get-Field $Vm 'DynamicMemoryEnabled')
        memory_minimum_bytes = Get-Number (Get-Field $Vm 'MemoryMinimum')
        memory_maximum_bytes = Get-Number (Get-Field $Vm 'MemoryMaximum')
        checkpoint_type = Get-Text (Get-Field $Vm 'CheckpointType')
        automatic_checkpoints = Get-Flag (Get-Field $Vm 'AutomaticCheckpointsEnabled')
    }
}

# A record whose device is gone has an empty path and an empty id.
function ConvertTo-Record($Device) {
    [ordered]@{
        location_path = Get-Text (Get-Field $Device 'LocationPath')
        instance_id = Get-Text (Get-Field $Device 'InstanceID')
        pool = Get-Text (Get-Field $Device 'ResourcePoolName')
    }
}

# What VMs list, running or not. A record of a VM that was not asked about says that the host's VMs were listed in part:
# whoever left it out would take its device for free.
function Get-Record([object[]] $Vms) {
    $asked = @{}
    foreach ($vm in $Vms) { $asked[[string](Get-Field $vm 'Id')] = $true }
    $records = @()
    if ($Vms.Count -eq 0) { return , $records }
    foreach ($device in @(Get-VMAssignableDevice -VM $Vms -ErrorAction Stop)) {
        if ($null -eq $device) { continue }
        $id = [string](Get-Field $device 'VMId')
        if (-not $asked.ContainsKey($id)) {
            Stop-Request 'Refused' ('the host shows a device of the VM ' + $id + ', which was not among those asked about')
        }
        $records += $device
    }
    return , $records
}

# Whether a checkpoint holds the state of a machine that ran. Seen in Hyper-V's module (VMSnapshot.State): it is Saved if
# so, else Off. One that says neither is taken for one that does.
function Test-SavedState($Checkpoint) {
    return [string](Get-Field $Checkpoint 'State') -cne 'Off'
}

function Get-Seconds($Span) {
    if ($Span -is [timespan]) { return [long][math]::Floor($Span.TotalSeconds) }
    return $null
}

# VMs with what they list, running or not. Two calls for all of them: what one VM's configuration hides would make every
# device's freedom unknown, so a VM that cannot be read fails the whole look.
function ConvertTo-VmView([object[]] $Vms) {
    $records = @{}
    $checkpoints = @{}
    $saved = @{}
    if ($Vms.Count -gt 0) {
        foreach ($device in (Get-Record $Vms)) {
            $id = [string](Get-Field $device 'VMId')
            if (-not $records.ContainsKey($id)) { $records[$id] = @() }
            $records[$id] += ConvertTo-Record $device
        }
        foreach ($checkpoint in @(Get-VMSnapshot -VM $Vms -ErrorAction Stop)) {
            $id = [string](Get-Field $checkpoint 'VMId')
            $checkpoints[$id] = 1 + [int]$checkpoints[$id]
            if (Test-SavedState $checkpoint) { $saved[$id] = 1 + [int]$saved[$id] }
        }
    }
    $views = @()
    foreach ($vm in $Vms) {
        $id = [string](Get-Field $vm 'Id')
        $clustered = Get-Flag (Get-Field $vm 'IsClustered')
        $devices = @($records[$id] | Where-Object { $null -ne $_ })
        # One more call for each clustered VM, so once only, and anew where it matters: where it has a device.
        if (-not $clustered -or $devices.Count -gt 0) { $script:Roles[$id] = $null }
        if ($clustered -and $null -eq $script:Roles[$id]) { $script:Roles[$id] = Get-Role ([guid]$id) }
        $views += [ordered]@{
            id = $id
            name = Get-Text (Get-Field $vm 'Name')
            state = Get-Text (Get-Field $vm 'State')
            generation = Get-Number (Get-Field $vm 'Generation')
            clustered = $clustered
            role = $script:Roles[$id]
            # Unproven: which builds have it. Absent, nobody claims that the VM is no replica.
            replication_mode = Get-Text (Get-Field $vm 'ReplicationMode')
            start_action = Get-Text (Get-Field $vm 'AutomaticStartAction')
            settings = Get-Settings $vm
            memory_startup_bytes = Get-Number (Get-Field $vm 'MemoryStartup')
            processors = Get-Number (Get-Field $vm 'ProcessorCount')
            checkpoints = [int]$checkpoints[$id]
            saved_checkpoints = [int]$saved[$id]
            heartbeat = Get-Text (Get-Field $vm 'Heartbeat')
            uptime_seconds = Get-Seconds (Get-Field $vm 'Uptime')
            version = Get-Text (Get-Field $vm 'Version')
            devices = $devices
        }
    }
    return , $views
}

# Roles as they were last told, by VM. Only to save the asking: before one is removed it is asked for once more.
$script:Roles = @{}

# A VM's role in the cluster, where there is one and it answers.
function Get-Role([guid] $Id) {
    try {
        $group = @(Get-ClusterGroup -VMId $Id -ErrorAction Stop)[0]
    } catch {
        return $null
    }
    [ordered]@{
        name = Get-Text (Get-Field $group 'Name')
        # Unproven field names: for people, nothing is decided by them.
        owner = Get-Text (Get-Field $group 'OwnerNode')
        priority = Get-Number (Get-Field $group 'Priority')
    }
}

# The VM with an id, as an object that cmdlets take. Whether it is missing is found out by listing all of them: the
# error for a missing one looks like others, and its text is localised.
function Get-VmById([guid] $Id) {
    try {
        $vm = @(Get-VM -Id (Confirm-VmId ([string]$Id)) -ErrorAction Stop)
    } catch {
        $known = @(Get-VM -ErrorAction Stop | Where-Object { [guid](Get-Field $_ 'Id') -eq $Id })
        if ($known.Count -eq 0) { Stop-Request 'NotThere' ('no VM on this host has the id ' + $Id) }
        # Not passed on as it is: by its id this error says that the VM is gone, which the listing just denied.
        Stop-Request 'Refused' ('the host lists the VM ' + $Id + ' and does not give it: ' + $_.Exception.Message)
    }
    if ($vm.Count -ne 1) { Stop-Request 'NotThere' ('no VM on this host has the id ' + $Id) }
    return Confirm-Vm $vm[0] $Id
}

function Get-AllVms {
    return , @(Get-VM -ErrorAction Stop | Where-Object { $null -ne $_ })
}

# The moment the host's system started, which tells one run from the next.
function Get-BootTime($System) {
    $at = Get-Field $System 'LastBootUpTime'
    if ($at -isnot [datetime]) { return $null }
    return $at.ToUniversalTime().ToString('yyyy-MM-ddTHH:mm:ssZ', [cultureinfo]::InvariantCulture)
}
