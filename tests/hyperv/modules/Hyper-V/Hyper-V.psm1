# The Hyper-V module as documented, on a fake host, with the real one's dangerous habits. Which of them are on is said in
# the state's "habits":
#   remove-all            Remove-VMAssignableDevice by VM name and without a path takes every device of the VM
#   mount-all             Mount-VMHostAssignableDevice with an empty path, or none, mounts the whole pool
#   any-of-pool           Add-VMAssignableDevice with a pool's name and no path takes whichever device comes first
#   silent-no-match       a path that matches nothing is no error
#   case-sensitive-paths  paths are compared byte by byte
# Without a habit the command refuses, or compares as people would, so that a test can tell what rests on it.

Import-Module (Join-Path $PSScriptRoot '../BerthFake/BerthFake.psm1')
Set-StrictMode -Version 3.0

enum VMState {
    Other = 1; Running = 2; Off = 3; Stopping = 4; Saved = 6; Paused = 9; Starting = 10; Saving = 32773; OffCritical = 32786
}
enum StopAction { TurnOff = 2; Save = 3; ShutDown = 4 }
enum StartAction { Nothing = 2; StartIfRunning = 3; Start = 4 }
enum CheckpointType { Disabled = 2; Production = 3; ProductionOnly = 4; Standard = 5 }
enum CriticalErrorAction { None = 0; Pause = 1 }
enum OnOffState { On = 0; Off = 1 }
enum VMHeartbeatStatus { Unknown = 0; Disabled = 1; NoContact = 2; OkApplicationsUnknown = 5; OkApplicationsHealthy = 6 }
enum VMReplicationMode { None = 0; Primary = 1; Replica = 2; TestReplica = 3; ExtendedReplica = 4 }

$script:VmType = 'Microsoft.HyperV.PowerShell.VirtualMachine'
$script:AssignedType = 'Microsoft.HyperV.PowerShell.VMAssignedDevice'
$script:HostDeviceType = 'Microsoft.HyperV.PowerShell.VMHostAssignableDevice'

function New-VmObject($State, $Vm) {
    $view = [ordered]@{
        PSTypeName = $script:VmType
        Id = [guid]$Vm.id
        VMId = [guid]$Vm.id
        Name = $Vm.name
        State = [VMState]$Vm.state
        Generation = [int]$Vm.generation
        IsClustered = [bool]$Vm.clustered
        AutomaticStopAction = [StopAction]$Vm.stop_action
        AutomaticStartAction = [StartAction]$Vm.start_action
        DynamicMemoryEnabled = [bool]$Vm.dynamic_memory
        MemoryStartup = [long]$Vm.memory_startup
        MemoryMinimum = [long]$Vm.memory_minimum
        MemoryMaximum = [long]$Vm.memory_maximum
        ProcessorCount = [long]$Vm.processors
        CheckpointType = [CheckpointType]$Vm.checkpoint_type
        GuestControlledCacheTypes = [bool]$Vm.guest_cache_types
        LowMemoryMappedIoSpace = [uint32]$Vm.mmio_low
        HighMemoryMappedIoSpace = [uint64]$Vm.mmio_high
        Heartbeat = if ($Vm.state -eq 'Running') { [VMHeartbeatStatus]'OkApplicationsUnknown' } else { $null }
        Uptime = if ($Vm.state -eq 'Running') { [timespan]::FromSeconds(61.5) } else { [timespan]::Zero }
        ReplicationMode = [VMReplicationMode]$Vm.replication_mode
        Version = '10.0'
        ComputerName = $State.host.computer
        IsDeleted = $false
    }
    if (-not (Test-Habit $State 'old-module')) { $view.AutomaticCheckpointsEnabled = [bool]$Vm.automatic_checkpoints }
    [pscustomobject]$view
}

function New-AssignedObject($State, $Vm, $Record) {
    $live = Test-FakeLive $State $Record
    [pscustomobject]@{
        PSTypeName = $script:AssignedType
        # A record whose device is gone keeps neither path nor id.
        InstanceID = if ($live) { 'PCIP\' + $Record.tail } else { '' }
        LocationPath = if ($live) { $Record.path } else { '' }
        ResourcePoolName = if ($Record['pool']) { $Record['pool'] } else { 'Primordial' }
        VirtualFunction = [uint16]0
        Name = 'PCI Express Port'
        Id = 'Microsoft:' + $Vm.id + '\' + $Record.key
        VMId = [guid]$Vm.id
        VMName = $Vm.name
        VMSnapshotId = [guid]::Empty
        VMSnapshotName = ''
        ComputerName = $State.host.computer
        IsDeleted = $false
    }
}

# Objects of the right type only, as the parameter binder sees to.
function Confirm-Type([object[]] $Objects, [string] $Type, [string] $Command) {
    foreach ($object in $Objects) {
        if ($null -eq $object -or $object.PSObject.TypeNames -notcontains $Type) {
            throw (New-FakeError $Command "Cannot bind to the target: no $Type" 'ParameterArgumentTransformationError' 'InvalidData' -2147024809)
        }
    }
}

function Find-Vm($Call, $Name, $Vm) {
    if ($Vm) {
        Confirm-Type $Vm $script:VmType $Call.Command
        foreach ($object in $Vm) {
            $found = @($Call.State.vms | Where-Object { $_.id -eq [string]$object.Id })
            if (-not $found.Count) {
                throw (New-FakeError $Call.Command (Get-FakeText $Call.State 'vm' @($object.Id)) 'ObjectNotFound' 'ObjectNotFound' -2147024894)
            }
            $found[0]
        }
    } else {
        # By name: wildcards, and several of the same name.
        @(Get-FakeVm $Call.State | Where-Object { $machine = $_; @($Name | Where-Object { $machine.name -like $_ }).Count })
    }
}

function Confirm-VmOff($Call, $Vm) {
    if ($Vm.state -ne 'Off') {
        throw (New-FakeError $Call.Command (Get-FakeText $Call.State 'state') 'InvalidState' 'InvalidOperation' -2147019873)
    }
}

function Test-Path-Equal($State, [string] $A, [string] $B) {
    if (Test-Habit $State 'case-sensitive-paths') { $A -ceq $B } else { $A -ieq $B }
}

function Get-VM {
    [CmdletBinding(DefaultParameterSetName = 'Name')]
    param(
        [Parameter(ParameterSetName = 'Name', Position = 0, ValueFromPipeline)] [Alias('VMName')] [string[]] $Name,
        [Parameter(ParameterSetName = 'Id', Position = 0, ValueFromPipeline, ValueFromPipelineByPropertyName)] [guid] $Id,
        [Parameter(ParameterSetName = 'ClusterObject', Position = 0, Mandatory, ValueFromPipeline)] [psobject] $ClusterObject,
        [Parameter(ParameterSetName = 'Name')] [Parameter(ParameterSetName = 'Id')] [object[]] $CimSession,
        [Parameter(ParameterSetName = 'Name')] [Parameter(ParameterSetName = 'Id')] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'Name')] [Parameter(ParameterSetName = 'Id')] [pscredential[]] $Credential
    )
    $call = Start-FakeCall 'Get-VM' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $vms = @(Get-FakeVm $call.State)
    if ($PSBoundParameters.ContainsKey('Id')) {
        $vms = @($vms | Where-Object { $_.id -eq [string]$Id })
        if (-not $vms.Count -or (Test-Habit $call.State 'ids-not-found')) {
            throw (New-FakeError 'Get-VM' (Get-FakeText $call.State 'vm' @($Id)) 'InvalidParameter' 'InvalidArgument' -2147024809)
        }
    } elseif ($Name) { $vms = @(Find-Vm $call $Name $null) }
    foreach ($vm in $vms) { New-VmObject $call.State $vm }
}

function Get-VMHost {
    [CmdletBinding(DefaultParameterSetName = 'ComputerName')]
    param(
        [Parameter(ParameterSetName = 'ComputerName', Position = 0, ValueFromPipeline)] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'ComputerName', Position = 1, ValueFromPipeline)] [pscredential[]] $Credential,
        [Parameter(ParameterSetName = 'CimSession', Position = 0, Mandatory, ValueFromPipelineByPropertyName)] [object[]] $CimSession
    )
    $call = Start-FakeCall 'Get-VMHost' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    [pscustomobject]@{
        Name = $call.State.host.computer
        IovSupport = [bool]$call.State.host.iov_support
        IovSupportReasons = if ($call.State.host.iov_support_reasons) { [string[]]$call.State.host.iov_support_reasons } else { $null }
    }
}

function Get-VMSnapshot {
    [CmdletBinding(DefaultParameterSetName = 'VMName')]
    param(
        [Parameter(ParameterSetName = 'VMName', Position = 0, Mandatory, ValueFromPipeline)] [string[]] $VMName,
        [Parameter(ParameterSetName = 'VMObject', Position = 0, Mandatory, ValueFromPipeline)] [object[]] $VM,
        [Parameter(ParameterSetName = 'Id', Position = 0, Mandatory)] [guid] $Id,
        [Parameter(ParameterSetName = 'Parent', Mandatory)] [object] $ParentOf,
        [Parameter(ParameterSetName = 'Child', Mandatory)] [object] $ChildOf,
        [Parameter(ParameterSetName = 'VMName', Position = 1)] [Parameter(ParameterSetName = 'VMObject', Position = 1)]
        [Parameter(ParameterSetName = 'Parent', Position = 0)] [Parameter(ParameterSetName = 'Child', Position = 0)] [string] $Name,
        [Parameter(ParameterSetName = 'VMName')] [Parameter(ParameterSetName = 'VMObject')]
        [Parameter(ParameterSetName = 'Parent')] [Parameter(ParameterSetName = 'Child')] [Alias('VMRecoveryCheckpoint')] [string] $SnapshotType,
        [Parameter(ParameterSetName = 'VMName')] [Parameter(ParameterSetName = 'Id')] [object[]] $CimSession,
        [Parameter(ParameterSetName = 'VMName')] [Parameter(ParameterSetName = 'Id')] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'VMName')] [Parameter(ParameterSetName = 'Id')] [pscredential[]] $Credential
    )
    $call = Start-FakeCall 'Get-VMSnapshot' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    foreach ($machine in @(Find-Vm $call $VMName $VM)) {
        # A name alone is one without a saved state, as most are.
        foreach ($checkpoint in $machine.checkpoints) {
            $name, $state = if ($checkpoint -is [string]) { $checkpoint, 'Off' } else { $checkpoint.name, $checkpoint.state }
            $view = @{ Name = $name; VMId = [guid]$machine.id; VMName = $machine.name; Id = [guid]::NewGuid() }
            if ($state) { $view.State = [VMState]$state }
            [pscustomobject]$view
        }
    }
}

function Get-VMNetworkAdapter {
    [CmdletBinding(DefaultParameterSetName = 'VMName')]
    param(
        [Parameter(ParameterSetName = 'VMName', Position = 0, Mandatory)] [string[]] $VMName,
        [Parameter(ParameterSetName = 'VMObject', Position = 0, Mandatory, ValueFromPipeline)] [object[]] $VM,
        [Parameter(ParameterSetName = 'VMSnapshot', Position = 0, Mandatory, ValueFromPipeline)] [Alias('VMCheckpoint')] [object] $VMSnapshot,
        [Parameter(ParameterSetName = 'ManagementOS')] [switch] $ManagementOS,
        [Parameter(ParameterSetName = 'All')] [switch] $All,
        [Parameter(ParameterSetName = 'ManagementOS')] [string] $SwitchName,
        [Parameter(Position = 1)] [Alias('VMNetworkAdapterName')] [string] $Name, [bool] $IsLegacy,
        [Parameter(ParameterSetName = 'VMName')] [Parameter(ParameterSetName = 'ManagementOS')] [Parameter(ParameterSetName = 'All')] [object[]] $CimSession,
        [Parameter(ParameterSetName = 'VMName')] [Parameter(ParameterSetName = 'ManagementOS')] [Parameter(ParameterSetName = 'All')] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'VMName')] [Parameter(ParameterSetName = 'ManagementOS')] [Parameter(ParameterSetName = 'All')] [pscredential[]] $Credential
    )
    $call = Start-FakeCall 'Get-VMNetworkAdapter' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    foreach ($machine in @(Find-Vm $call $VMName $VM)) {
        foreach ($adapter in $machine.addresses) { [pscustomobject]@{ Name = 'Network Adapter'; VMId = [guid]$machine.id; IPAddresses = $adapter } }
    }
}

# Counts down: so many looks do not show what was dismounted a moment ago.
function Test-Lag($Call, [string] $Counter) {
    if ($Call.State[$Counter] -le 0) { return $false }
    $Call.State[$Counter]--
    Save-FakeState $Call.State
    $true
}

function Get-Pool($Call) {
    $late = @(if ($Call.State.late) { $Call.State.late })
    $lags = $late.Count -and (Test-Lag $Call 'pool_lag')
    foreach ($function in @(Get-FakeFunction $Call.State | Where-Object { $_.dismounted })) {
        if ($lags -and $late -ccontains $function.path) { continue }
        $function
    }
}

function Get-VMHostAssignableDevice {
    [CmdletBinding()]
    param([object[]] $CimSession, [string[]] $ComputerName, [pscredential[]] $Credential)
    dynamicparam {
        # Not in the module of 2020.
        $filters = [ordered]@{ InstancePath = [string]; LocationPath = [string]; ResourcePoolName = [string[]] }
        $given = [System.Management.Automation.RuntimeDefinedParameterDictionary]::new()
        if (Test-Habit (Get-FakeState) 'pool-without-filters') { return $given }
        foreach ($name in $filters.Keys) {
            $attributes = [System.Collections.ObjectModel.Collection[System.Attribute]]::new()
            $attributes.Add([System.Management.Automation.ParameterAttribute]::new())
            $given.Add($name, [System.Management.Automation.RuntimeDefinedParameter]::new($name, $filters[$name], $attributes))
        }
        $given
    }
    process {
        $call = Start-FakeCall 'Get-VMHostAssignableDevice' $PSBoundParameters
        if (Test-FakeEnd $call) { return }
        $path = $PSBoundParameters['LocationPath']
        $pools = @($PSBoundParameters['ResourcePoolName'] | Where-Object { $_ })
        foreach ($function in @(Get-Pool $call)) {
            if ($path -and -not (Test-Path-Equal $call.State $function.path $path)) { continue }
            if ($pools.Count -and $pools -notcontains 'Primordial' -and $pools -notcontains $function['pool']) { continue }
            [pscustomobject]@{
                PSTypeName = $script:HostDeviceType
                InstanceID = 'PCIP\' + $function.tail
                LocationPath = $function.path
                ComputerName = $call.State.host.computer
                IsDeleted = $false
            }
        }
    }
}

# The root pool, and those that somebody made: the names that functions and records say.
function Get-VMResourcePool {
    [CmdletBinding()]
    param(
        [string[]] $Name, [string[]] $ResourcePoolType,
        [object[]] $CimSession, [string[]] $ComputerName, [pscredential[]] $Credential
    )
    $call = Start-FakeCall 'Get-VMResourcePool' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $made = @(Get-FakeFunction $call.State | ForEach-Object { $_['pool'] } | Where-Object { $_ })
    $made += @($call.State.vms | ForEach-Object { $_.devices } | ForEach-Object { $_['pool'] } | Where-Object { $_ })
    foreach ($pool in @('Primordial') + @($made | Sort-Object -Unique)) {
        [pscustomobject]@{ Name = $pool; ResourcePoolType = 'PciExpress'; ComputerName = $call.State.host.computer }
    }
}

function Get-VMAssignableDevice {
    [CmdletBinding(DefaultParameterSetName = 'VMName')]
    param(
        [Parameter(ParameterSetName = 'VMName', Position = 0, Mandatory, ValueFromPipeline)] [string[]] $VMName,
        [Parameter(ParameterSetName = 'VMObject', Position = 0, Mandatory, ValueFromPipeline)] [object[]] $VM,
        [string] $InstancePath, [string] $LocationPath,
        [Parameter(ParameterSetName = 'VMName')] [object[]] $CimSession,
        [Parameter(ParameterSetName = 'VMName')] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'VMName')] [pscredential[]] $Credential
    )
    begin {
        $call = Start-FakeCall 'Get-VMAssignableDevice' $PSBoundParameters
        $ended = Test-FakeEnd $call
    }
    process {
        if ($ended) { return }
        foreach ($machine in @(Find-Vm $call $VMName $VM)) {
            foreach ($record in $machine.devices) { New-AssignedObject $call.State $machine $record }
        }
        # Records of a VM that the listing of VMs left out, as a listing while VMs are registered may.
        foreach ($machine in @($call.State.vms | Where-Object { (Get-LookFault $call.State) -eq 'RecordOfUnlisted' -and $_['unlisted'] })) {
            foreach ($record in $machine.devices) { New-AssignedObject $call.State $machine $record }
        }
    }
}

function Set-VM {
    [CmdletBinding(DefaultParameterSetName = 'Name', SupportsShouldProcess)]
    param(
        [Parameter(ParameterSetName = 'Name', Position = 0, Mandatory, ValueFromPipeline)] [Alias('VMName')] [string[]] $Name,
        [Parameter(ParameterSetName = 'VMObject', Position = 0, Mandatory, ValueFromPipeline)] [object[]] $VM,
        [bool] $GuestControlledCacheTypes, [uint32] $LowMemoryMappedIoSpace, [uint64] $HighMemoryMappedIoSpace,
        [long] $ProcessorCount, [switch] $DynamicMemory, [switch] $StaticMemory,
        [long] $MemoryMinimumBytes, [long] $MemoryMaximumBytes, [long] $MemoryStartupBytes,
        [StartAction] $AutomaticStartAction, [StopAction] $AutomaticStopAction, [int] $AutomaticStartDelay,
        [CriticalErrorAction] $AutomaticCriticalErrorAction, [int] $AutomaticCriticalErrorActionTimeout,
        [OnOffState] $LockOnDisconnect, [string] $Notes, [string] $NewVMName, [string] $SnapshotFileLocation,
        [string] $SmartPagingFilePath, [CheckpointType] $CheckpointType, [switch] $Passthru, [switch] $AllowUnverifiedPaths,
        [Parameter(ParameterSetName = 'Name')] [object[]] $CimSession,
        [Parameter(ParameterSetName = 'Name')] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'Name')] [pscredential[]] $Credential
    )
    dynamicparam {
        # Not in the module of Server 2016.
        $given = [System.Management.Automation.RuntimeDefinedParameterDictionary]::new()
        if (-not (Test-Habit (Get-FakeState) 'old-module')) {
            $attributes = [System.Collections.ObjectModel.Collection[System.Attribute]]::new()
            $attributes.Add([System.Management.Automation.ParameterAttribute]::new())
            $given.Add('AutomaticCheckpointsEnabled', [System.Management.Automation.RuntimeDefinedParameter]::new('AutomaticCheckpointsEnabled', [bool], $attributes))
        }
        $given
    }
    process {
        $call = Start-FakeCall 'Set-VM' $PSBoundParameters
        if (Test-FakeEnd $call) { return }
        foreach ($machine in @(Find-Vm $call $Name $VM)) {
            Confirm-VmOff $call $machine
            foreach ($pair in @(
                    @('GuestControlledCacheTypes', 'guest_cache_types'), @('LowMemoryMappedIoSpace', 'mmio_low'),
                    @('HighMemoryMappedIoSpace', 'mmio_high'), @('MemoryMinimumBytes', 'memory_minimum'),
                    @('MemoryMaximumBytes', 'memory_maximum'), @('MemoryStartupBytes', 'memory_startup'),
                    @('AutomaticCheckpointsEnabled', 'automatic_checkpoints'))) {
                if ($PSBoundParameters.ContainsKey($pair[0])) { $machine[$pair[1]] = $PSBoundParameters[$pair[0]] }
            }
            foreach ($pair in @(@('AutomaticStopAction', 'stop_action'), @('CheckpointType', 'checkpoint_type'))) {
                if ($PSBoundParameters.ContainsKey($pair[0])) { $machine[$pair[1]] = [string]$PSBoundParameters[$pair[0]] }
            }
            if ($DynamicMemory) { $machine.dynamic_memory = $true }
            if ($StaticMemory) {
                $machine.dynamic_memory = $false
                if (Test-Habit $call.State 'static-memory-forgets-bounds') {
                    $machine.memory_minimum = $machine.memory_startup
                    $machine.memory_maximum = $machine.memory_startup
                }
            }
        }
        Complete-FakeCall $call
    }
}

# Why a VM cannot start, if anything.
function Get-StartProblem($State, $Vm) {
    if (-not $Vm.devices.Count) { return $null }
    if ($State.host.product_type -eq 1) { return 'feature' }
    if (@($Vm.devices | Where-Object { -not (Test-FakeLive $State $_) }).Count) { return 'gone' }
    $functions = @($State.functions | Where-Object { $_.path -cin $Vm.devices.path })
    if (@($functions | Where-Object { -not $_.dismounted }).Count) { return 'taken' }
    if ($Vm.clustered) { return 'clustered' }
    if ($Vm.dynamic_memory) { return 'dynamic' }
    if ($Vm.stop_action -eq 'Save') { return 'save' }
    foreach ($other in @($State.vms | Where-Object { $_.id -ne $Vm.id -and $_.state -in 'Running', 'Paused' })) {
        if (@($other.devices | Where-Object { $_.path -cin $Vm.devices.path }).Count) { return 'taken' }
    }
    $high = [decimal]0
    foreach ($window in $functions.windows) {
        if ($window.start -ge 4GB) { $high += $window.end - $window.start + 1 }
    }
    if ($high -gt $Vm.mmio_high) { return 'room' }
    $null
}

function Start-VM {
    [CmdletBinding(DefaultParameterSetName = 'Name', SupportsShouldProcess)]
    param(
        [Parameter(ParameterSetName = 'Name', Position = 0, Mandatory, ValueFromPipeline)] [Alias('VMName')] [string[]] $Name,
        [Parameter(ParameterSetName = 'VMObject', Position = 0, Mandatory, ValueFromPipeline)] [object[]] $VM,
        [switch] $AsJob, [switch] $Passthru,
        [Parameter(ParameterSetName = 'Name')] [object[]] $CimSession,
        [Parameter(ParameterSetName = 'Name')] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'Name')] [pscredential[]] $Credential
    )
    $call = Start-FakeCall 'Start-VM' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    foreach ($machine in @(Find-Vm $call $Name $VM)) {
        if ($machine.state -eq 'Running') { continue }
        $problem = Get-StartProblem $call.State $machine
        if ($problem) {
            $text = Get-FakeText $call.State 'start' @($machine.name, $machine.id, (Get-FakeText $call.State $problem))
            $call.State.events = @($text, 'another VM (Virtual machine ID 00000000-0000-0000-0000-000000000001)')
            Save-FakeState $call.State
            throw (New-FakeError 'Start-VM' $text 'OperationFailed' 'NotSpecified' -2147024809)
        }
        $machine.state = 'Running'
    }
    Complete-FakeCall $call
}

function Stop-VM {
    [CmdletBinding(DefaultParameterSetName = 'Name', SupportsShouldProcess)]
    param(
        [Parameter(ParameterSetName = 'Name', Position = 0, Mandatory, ValueFromPipeline)] [Alias('VMName')] [string[]] $Name,
        [Parameter(ParameterSetName = 'VMObject', Position = 0, Mandatory, ValueFromPipeline)] [object[]] $VM,
        [switch] $Save, [switch] $TurnOff, [switch] $Force, [switch] $AsJob, [switch] $Passthru,
        [Parameter(ParameterSetName = 'Name')] [object[]] $CimSession,
        [Parameter(ParameterSetName = 'Name')] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'Name')] [pscredential[]] $Credential
    )
    $call = Start-FakeCall 'Stop-VM' $PSBoundParameters
    try {
        if (Test-FakeEnd $call) { return }
        foreach ($machine in @(Find-Vm $call $Name $VM)) {
            if ($Save) { $machine.state = 'Saved'; continue }
            # Its cluster starts again at once what somebody else stops.
            if ($machine.clustered -and (Test-Habit $call.State 'cluster-restarts')) { continue }
            # Where there is a saved state, there is nothing to turn off.
            if ($machine.state -eq 'Saved') { Confirm-VmOff $call $machine }
            if ($TurnOff) { $machine.state = 'Off'; continue }
            if ($machine.state -ne 'Running') { Confirm-VmOff $call $machine }
            # Nor does the state always show that the guest was asked.
            if (Test-Habit $call.State 'deaf-guest') {
                return [pscustomobject]@{ State = 'Running'; Error = @(); ChildJobs = @() }
            }
            # A guest takes its time, as long as it likes.
            $machine.state = if (Test-Habit $call.State 'slow-guest') { 'Stopping' } else { 'Off' }
        }
        Complete-FakeCall $call
    } catch {
        if (-not $AsJob) { throw }
        # A job keeps its errors.
        return [pscustomobject]@{ State = 'Failed'; Error = @($_); ChildJobs = @() }
    }
    if ($AsJob) { [pscustomobject]@{ State = 'Completed'; Error = @(); ChildJobs = @() } }
}

function Find-HostFunction($Call, [string] $LocationPath) {
    @($Call.State.functions | Where-Object { $_.in_slot -and (Test-Path-Equal $Call.State $_.path $LocationPath) })
}

function Dismount-VMHostAssignableDevice {
    [CmdletBinding(SupportsShouldProcess)]
    param(
        [string] $InstancePath, [string] $LocationPath, [switch] $Force, [switch] $Passthru,
        [object[]] $CimSession, [string[]] $ComputerName, [pscredential[]] $Credential
    )
    $call = Start-FakeCall 'Dismount-VMHostAssignableDevice' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $found = @(Find-HostFunction $call $LocationPath | Where-Object { -not $_.dismounted })
    if (-not $found.Count) {
        throw (New-FakeError $call.Command (Get-FakeText $call.State 'device' @($LocationPath, $call.State.host.computer)) 'ObjectNotFound' 'ObjectNotFound' -2147024894)
    }
    if (Test-Habit $call.State 'firmware-keeps-pcie') {
        throw (New-FakeError $call.Command (Get-FakeText $call.State 'firmware') 'OperationFailed' 'NotSpecified' -2147024809)
    }
    if (-not $found[0].mitigation -and -not $Force) {
        throw (New-FakeError $call.Command (Get-FakeText $call.State 'mitigation') 'OperationFailed' 'NotSpecified' -2147024809)
    }
    $found[0].dismounted = $true
    if (Test-Habit $call.State 'registration-lag') {
        $call.State.late = @($LocationPath)
        $call.State.pool_lag = 3
        $call.State.cache_lag = 2
    }
    Complete-FakeCall $call
}

function Mount-VMHostAssignableDevice {
    [CmdletBinding(DefaultParameterSetName = 'Path', SupportsShouldProcess)]
    param(
        [Parameter(ParameterSetName = 'Path')] [string] $InstancePath,
        [Parameter(ParameterSetName = 'Path')] [string] $LocationPath,
        [Parameter(ParameterSetName = 'Object', Position = 0, Mandatory, ValueFromPipeline)] [Alias('VMHostAssignableDevice')] [object[]] $HostAssignableDevice,
        [switch] $Passthru,
        [Parameter(ParameterSetName = 'Path')] [object[]] $CimSession,
        [Parameter(ParameterSetName = 'Path')] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'Path')] [pscredential[]] $Credential
    )
    $call = Start-FakeCall 'Mount-VMHostAssignableDevice' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $pool = @($call.State.functions | Where-Object { $_.in_slot -and $_.dismounted })
    if ($HostAssignableDevice) {
        Confirm-Type $HostAssignableDevice $script:HostDeviceType $call.Command
        $pool = @($pool | Where-Object { $_.path -cin $HostAssignableDevice.LocationPath })
    } elseif ($LocationPath) {
        $pool = @($pool | Where-Object { Test-Path-Equal $call.State $_.path $LocationPath })
    } elseif (-not (Test-Habit $call.State 'mount-all')) {
        throw (New-FakeError $call.Command (Get-FakeText $call.State 'path') 'InvalidParameter' 'InvalidArgument' -2147024809)
    }
    if (-not $pool.Count -and -not (Test-Habit $call.State 'silent-no-match')) {
        throw (New-FakeError $call.Command (Get-FakeText $call.State 'device' @($LocationPath, $call.State.host.computer)) 'ObjectNotFound' 'ObjectNotFound' -2147024894)
    }
    foreach ($function in $pool) { $function.dismounted = $false }
    Complete-FakeCall $call
    if (Test-Habit $call.State 'mount-reports-failure') {
        throw (New-FakeError $call.Command (Get-FakeText $call.State 'fault' @($call.Command)) 'OperationFailed' 'NotSpecified' -2147467259)
    }
}

function Add-VMAssignableDevice {
    [CmdletBinding(DefaultParameterSetName = 'VMName', SupportsShouldProcess)]
    param(
        [Parameter(ParameterSetName = 'VMName', Position = 0, Mandatory)] [string[]] $VMName,
        [Parameter(ParameterSetName = 'VMObject', Position = 0, Mandatory, ValueFromPipeline)] [object[]] $VM,
        [string] $InstancePath, [string] $LocationPath, [uint16] $VirtualFunction, [string] $ResourcePoolName, [switch] $Passthru,
        [Parameter(ParameterSetName = 'VMName')] [object[]] $CimSession,
        [Parameter(ParameterSetName = 'VMName')] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'VMName')] [pscredential[]] $Credential
    )
    $call = Start-FakeCall 'Add-VMAssignableDevice' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $state = $call.State
    $pool = @($state.functions | Where-Object { $_.in_slot -and $_.dismounted })
    # What was dismounted a moment ago is not in its cache yet.
    if ($state.late -and ((Test-Habit $state 'cache-never') -or (Test-Lag $call 'cache_lag'))) { $pool = @($pool | Where-Object { $_.path -cnotin $state.late }) }
    $pooled = $PSBoundParameters.ContainsKey('ResourcePoolName')
    if ($LocationPath) {
        $pool = @($pool | Where-Object { Test-Path-Equal $state $_.path $LocationPath })
    } elseif (-not $pooled -or -not (Test-Habit $state 'any-of-pool')) {
        throw (New-FakeError $call.Command (Get-FakeText $state 'path') 'InvalidParameter' 'InvalidArgument' -2147024809)
    }
    if (-not $pool.Count) {
        throw (New-FakeError $call.Command (Get-FakeText $state 'device' @($LocationPath, $state.host.computer)) 'ObjectNotFound' 'ObjectNotFound' -2147024894)
    }
    foreach ($machine in @(Find-Vm $call $VMName $VM)) {
        Confirm-VmOff $call $machine
        if (@($machine.devices | Where-Object { $_.path -ceq $pool[0].path }).Count) {
            throw (New-FakeError $call.Command (Get-FakeText $state 'assigned') 'InvalidOperation' 'InvalidOperation' -2147024809)
        }
        # That another VM has it as well shows only when one of them starts.
        $machine.devices = @($machine.devices) + @([ordered]@{ path = $pool[0].path; tail = $pool[0].tail; key = [guid]::NewGuid().ToString() })
    }
    Complete-FakeCall $call
}

function Remove-VMAssignableDevice {
    [CmdletBinding(DefaultParameterSetName = 'VMName', SupportsShouldProcess)]
    param(
        [Parameter(ParameterSetName = 'VMName', Position = 0, Mandatory)] [string[]] $VMName,
        [Parameter(ParameterSetName = 'VMName')] [ValidateNotNullOrEmpty()] [string] $InstancePath,
        [Parameter(ParameterSetName = 'VMName')] [ValidateNotNullOrEmpty()] [string] $LocationPath,
        [Parameter(ParameterSetName = 'Object', Position = 0, Mandatory, ValueFromPipeline)] [object[]] $VMAssignableDevice,
        [switch] $Passthru,
        [Parameter(ParameterSetName = 'VMName')] [object[]] $CimSession,
        [Parameter(ParameterSetName = 'VMName')] [string[]] $ComputerName,
        [Parameter(ParameterSetName = 'VMName')] [pscredential[]] $Credential
    )
    process {
        $call = Start-FakeCall 'Remove-VMAssignableDevice' $PSBoundParameters
        if (Test-FakeEnd $call) { return }
        $state = $call.State
        if ($VMAssignableDevice) {
            Confirm-Type $VMAssignableDevice $script:AssignedType $call.Command
            foreach ($device in $VMAssignableDevice) {
                foreach ($vm in @($state.vms | Where-Object { $_.id -eq [string]$device.VMId })) {
                    Confirm-VmOff $call $vm
                    $key = ([string]$device.Id).Split('\')[1]
                    $vm.devices = @($vm.devices | Where-Object { $_.key -ne $key })
                }
            }
        } else {
            foreach ($vm in @(Find-Vm $call $VMName $null)) {
                Confirm-VmOff $call $vm
                if ($LocationPath) {
                    $kept = @($vm.devices | Where-Object { -not (Test-Path-Equal $state $_.path $LocationPath) })
                    if ($kept.Count -eq @($vm.devices).Count -and -not (Test-Habit $state 'silent-no-match')) {
                        throw (New-FakeError $call.Command (Get-FakeText $state 'device' @($LocationPath, $state.host.computer)) 'ObjectNotFound' 'ObjectNotFound' -2147024894)
                    }
                    $vm.devices = $kept
                } elseif (Test-Habit $state 'remove-all') {
                    $vm.devices = @()
                } else {
                    throw (New-FakeError $call.Command (Get-FakeText $state 'path') 'InvalidParameter' 'InvalidArgument' -2147024809)
                }
            }
        }
        Complete-FakeCall $call
    }
}

# A job that runs a block beside this, as far as what is received from it goes.
function New-FakeJob($Problem, [string] $Text, [object[]] $Given, [bool] $Breaks) {
    $shell = [powershell]::Create([System.Management.Automation.Runspaces.InitialSessionState]::CreateDefault2())
    $null = $shell.AddScript({
            param($problem, $text, $given, $breaks)
            if ($problem) { throw $problem }
            & ([scriptblock]::Create($text)) @given | Where-Object {
                if ($breaks -and $_ -is [hashtable] -and $_['berth'] -eq 'ended') { throw 'the session has ended' }
                $true
            }
        }.ToString()).AddArgument($Problem).AddArgument($Text).AddArgument($Given).AddArgument($Breaks)
    $none = [System.Management.Automation.PSDataCollection[psobject]]::new()
    $none.Complete()
    $output = [System.Management.Automation.PSDataCollection[psobject]]::new()
    $null = $shell.BeginInvoke($none, $output)
    $job = [pscustomobject]@{ PSTypeName = 'System.Management.Automation.PSRemotingJob'; Shell = $shell; Output = $output }
    $state = { if ($this.Shell.InvocationStateInfo.State -in 'Running', 'NotStarted') { 'Running' } else { [string]$this.Shell.InvocationStateInfo.State } }
    $job.PSObject.Properties.Add([System.Management.Automation.PSScriptProperty]::new('State', $state))
    $job
}

function Receive-Job {
    [CmdletBinding()]
    param([Parameter(Mandatory, Position = 0, ValueFromPipeline)] [object[]] $Job)
    $null = Start-FakeCall 'Receive-Job' $PSBoundParameters
    foreach ($one in $Job) {
        $over = $one.State -ne 'Running'
        $one.Output.ReadAll()
        if ($over -and $one.State -eq 'Failed') {
            $reason = $one.Shell.InvocationStateInfo.Reason
            if ($reason -is [System.Management.Automation.RuntimeException]) { throw $reason.ErrorRecord }
            throw $reason
        }
    }
}

# PowerShell Direct. The command itself is a part of PowerShell; only this set of its parameters is about VMs.
function Invoke-Command {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory, Position = 0)] [Alias('VMGuid')] [guid[]] $VMId,
        [Parameter(Mandatory, Position = 1)] [Alias('Command')] [scriptblock] $ScriptBlock,
        [Parameter(Mandatory)] [pscredential] $Credential,
        [int] $ThrottleLimit, [string] $ConfigurationName, [switch] $AsJob, [switch] $HideComputerName,
        [psobject] $InputObject, [Alias('Args')] [object[]] $ArgumentList
    )
    $call = Start-FakeCall 'Invoke-Command' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $state = $call.State
    $vm = @($state.vms | Where-Object { $_.id -eq [string]$VMId[0] -and $_.state -eq 'Running' })
    $problem = $null
    if (-not $vm.Count -or $null -eq $vm[0].guest) {
        $problem = New-FakeError $call.Command (Get-FakeText $state 'direct') 'PSSessionStateBroken' 'OpenError' -2146233088
    } elseif ($Credential.GetNetworkCredential().Password -cne $vm[0].guest_password) {
        $problem = New-FakeError $call.Command (Get-FakeText $state 'credential') 'InvalidCredential' 'AuthenticationError' -2146233087
    }
    if ($AsJob) {
        # A session that is not made is an error of the job. Programs of the guest are programs here: a path there -> one here.
        $given = @($ArgumentList)
        if ($given.Count -and $state['programs'] -and $state.programs.ContainsKey([string]$given[0])) { $given[0] = $state.programs[[string]$given[0]] }
        return New-FakeJob $problem $ScriptBlock.ToString() $given (Test-Habit $state 'session-breaks')
    }
    if ($problem) { throw $problem }
    $state.guest = $vm[0].guest
    $state.asking_guest = $true
    Save-FakeState $state
    try {
        & $ScriptBlock
    } finally {
        $state = Get-FakeState
        $state.asking_guest = $false
        $state.guest = @()
        Save-FakeState $state
    }
}

Export-ModuleMember -Function Get-VM, Get-VMHost, Get-VMSnapshot, Get-VMNetworkAdapter, Get-VMHostAssignableDevice,
    Get-VMResourcePool, Get-VMAssignableDevice, Set-VM, Start-VM, Stop-VM, Dismount-VMHostAssignableDevice, Mount-VMHostAssignableDevice,
    Add-VMAssignableDevice, Remove-VMAssignableDevice, Invoke-Command, Receive-Job
