# What can be given to a VM, and every reason why not, measured while the host still runs the device.
# Follows the vendor's survey script, except that it names all reasons instead of the first.
# Must never change anything.

# What the host is. Reasons here hold for all of its devices.
function Get-HostFacts {
    $system = Get-CimInstance -ClassName Win32_OperatingSystem -ErrorAction Stop
    $machine = Get-CimInstance -ClassName Win32_ComputerSystem -ErrorAction Stop
    $vmHost = Get-VMHost -ErrorAction Stop
    $reasons = @()
    $product = Get-Number (Get-Field $system 'ProductType')
    # Client editions refuse only when the VM starts: 0xC035001E.
    if ($product -eq 1) { $reasons += 'HostEdition' }
    $iov = Get-Flag (Get-Field $vmHost 'IovSupport')
    # The texts beside it are localised, and whether DDA works all the same is disputed between the vendor's pages: the
    # agent's policy decides.
    if ($iov -eq $false) { $reasons += 'NoIommu' }
    $texts = @()
    $given = Get-Field $vmHost 'IovSupportReasons'
    foreach ($text in @($given)) { if ($null -ne (Get-Text $text)) { $texts += [string]$text } }
    [ordered]@{
        computer = Get-Text (Get-Field $machine 'Name')
        system = Get-Text (Get-Field $system 'Caption')
        version = Get-Text (Get-Field $system 'Version')
        boot_time = Get-BootTime $system
        logical_processors = Get-Number (Get-Field $machine 'NumberOfLogicalProcessors')
        memory_bytes = Get-Number (Get-Field $machine 'TotalPhysicalMemory')
        iov_support = $iov
        iov_support_reasons = $texts
        cluster = Get-ClusterName
        policy = Get-DevicePolicy
        reasons = $reasons
    }
}

# Group policy about assigned devices: 1 demands, 0 does not, nothing where it is not set or cannot be read. Seen to refuse
# the start of VMs with GPU partitions; unproven for whole devices, so it is told and decides nothing.
function Get-DevicePolicy {
    $policy = [ordered]@{ require_secure = $null; require_supported = $null }
    try {
        $key = Get-ItemProperty -LiteralPath 'HKLM:\SOFTWARE\Policies\Microsoft\Windows\HyperV' -ErrorAction Stop
    } catch {
        return $policy
    }
    $policy.require_secure = Get-Number (Get-Field $key 'RequireSecureDeviceAssignment')
    $policy.require_supported = Get-Number (Get-Field $key 'RequireSupportedDeviceAssignment')
    return $policy
}

# Not in a cluster, or the module is not there: no name.
function Get-ClusterName {
    try {
        return Get-Text (Get-Field @(Get-Cluster -ErrorAction Stop)[0] 'Name')
    } catch {
        return $null
    }
}

# The end of one association of a resource with a device: an object with the keys, or the text of a WMI path.
function Get-Reference($End, [string] $Key) {
    if ($End -is [string]) {
        $match = [regex]::Match($End, '\.' + $Key + '="([^"]*)"$')
        if ($match.Success) { return $match.Groups[1].Value.Replace('\\', '\') }
        $match = [regex]::Match($End, '\.' + $Key + '=([0-9-]+)$')
        if ($match.Success) { return $match.Groups[1].Value }
        return $null
    }
    return Get-Text (Get-Field $End $Key)
}

# Windows and interrupts of all devices, by instance id. Each class is asked for once and joined here: one query a
# device takes minutes.
function Get-Resource {
    $windows = @{}
    foreach ($window in @(Get-CimInstance -ClassName Win32_DeviceMemoryAddress -ErrorAction Stop)) {
        $start = Get-Number (Get-Field $window 'StartingAddress')
        $end = Get-Number (Get-Field $window 'EndingAddress')
        if ($null -ne $start -and $null -ne $end -and $end -ge $start) { $windows[[string]$start] = $end - $start + 1 }
    }
    $resources = @{}
    foreach ($association in @(Get-CimInstance -ClassName Win32_PnPAllocatedResource -ErrorAction Stop)) {
        $device = Get-Reference (Get-Field $association 'Dependent') 'DeviceID'
        if ($null -eq $device) { continue }
        if (-not $resources.ContainsKey($device)) { $resources[$device] = @{ windows = @(); interrupts = @() } }
        $antecedent = Get-Field $association 'Antecedent'
        $start = Get-Reference $antecedent 'StartingAddress'
        # Ports have a starting address, too; only memory is in the table.
        if ($null -ne $start -and $windows.ContainsKey($start)) {
            $resources[$device].windows += [ordered]@{ start = Get-Number $start; length = $windows[$start] }
        }
        $interrupt = Get-Number (Get-Reference $antecedent 'IRQNumber')
        if ($null -ne $interrupt) { $resources[$device].interrupts += $interrupt }
    }
    return $resources
}

# Whether an interrupt is a message: those have numbers near the end of 32 bits, negative ones when read as signed.
function Test-Message($Interrupt) {
    return $Interrupt -lt 0 -or $Interrupt -ge 0x7fffffff
}

function Get-DeviceFacts($Function, $Properties, $Resources) {
    $id = $Function.instance_id
    $of = @{}
    if ($Properties.ContainsKey($id)) { $of = $Properties[$id] }
    # A disabled device has no windows and no interrupts to measure.
    $measured = $null -ne $Function.problem -and $Function.problem -ne 22
    $windows = $null
    $interrupts = $null
    if ($measured) {
        $windows = @()
        $interrupts = @()
        if ($Resources.ContainsKey($id)) {
            $windows = $Resources[$id].windows
            $interrupts = $Resources[$id].interrupts
        }
    }
    $reserved = Get-Flag $of['RequiresReservedMemoryRegion']
    $acs = Get-Number $of['AcsCompatibleUpHierarchy']
    $type = Get-Number $of['DeviceType']
    $post = Get-Flag $of['OnPostPath']

    $reasons = @()
    # A missing value blocks as well: so does the vendor's script.
    if ($reserved -ne $false) { $reasons += 'ReservedMemory' }
    # A missing value means that the firmware does not expose ACS; the vendor's script lets it pass, this one does not.
    if ($null -eq $acs -or $acs -eq 0) { $reasons += 'NoAcs' }
    # 2 express endpoint, 4 embedded endpoint, 3 legacy endpoint, which only graphics controllers may be.
    if ($type -eq 5) {
        $reasons += 'FirmwareKeepsPcie'
    } elseif (-not ($type -eq 2 -or $type -eq 4 -or ($type -eq 3 -and $Function.base_class -eq 3))) {
        $reasons += 'NotAssignableKind'
    }
    if ($measured -and $interrupts.Count -gt 0) {
        $messages = @($interrupts | Where-Object { Test-Message $_ })
        if ($messages.Count -eq 0) { $reasons += 'LineInterruptsOnly' }
    }
    if ($post -eq $true) { $reasons += 'BootDisplay' }

    [ordered]@{
        location_path = $Function.location_path
        instance_id = $id
        base_class = $Function.base_class
        sub_class = $Function.sub_class
        problem = $Function.problem
        name = $Function.name
        measured = $measured
        windows = $windows
        interrupts = $interrupts
        device_type = $type
        bar_types = Get-Number $of['BarTypes']
        interrupt_support = Get-Number $of['InterruptSupport']
        interrupt_messages = Get-Number $of['InterruptMessageMaximum']
        acs = $acs
        reserved_memory = $reserved
        on_post_path = $post
        numa_node = Get-Number $of['NumaNode']
        serial = Get-Text $of['SerialNumber']
        reasons = $reasons
    }
}

# The facts of all functions on cards with a display or accelerator function that the host has now. Which of them are
# nobody's GPU (a management controller's, the hypervisor's own) the agent knows by their ids.
function Get-AllDeviceFacts {
    $found = Get-HostFunction
    $cards = @{}
    foreach ($function in $found.Values) {
        if ($script:GpuClasses -contains $function.base_class) { $cards[(Get-CardKey $function.location_path)] = $true }
    }
    $paths = @(@($found.Keys | Sort-Object) | Where-Object { $cards.ContainsKey((Get-CardKey $_)) })
    $ids = @()
    foreach ($path in $paths) { $ids += $found[$path].instance_id }
    $properties = Get-Property $ids @($script:PropertyKeys.Keys)
    $resources = Get-Resource
    $devices = @()
    foreach ($path in $paths) { $devices += Get-DeviceFacts $found[$path] $properties $resources }
    return , $devices
}

# Both halves, each by itself: that the host does not say what it is must not hide what its devices are. What could not be
# found out is said in words for people.
function Invoke-Survey($Arguments) {
    Confirm-Arguments $Arguments @()
    $survey = [ordered]@{ host = $null; devices = @(); unknown = @() }
    try {
        $survey.host = Get-HostFacts
    } catch {
        $survey.unknown += 'the host does not say what it is: ' + $_.Exception.Message
    }
    try {
        $survey.devices = Get-AllDeviceFacts
    } catch {
        $survey.unknown += 'its devices cannot be measured: ' + $_.Exception.Message
    }
    return $survey
}
