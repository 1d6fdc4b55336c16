# The PnpDevice module as documented, on a fake host.

Import-Module (Join-Path $PSScriptRoot '../BerthFake/BerthFake.psm1')
Set-StrictMode -Version 3.0

enum Problem {
    CM_PROB_NONE = 0
    CM_PROB_FAILED_START = 10
    CM_PROB_NORMAL_CONFLICT = 12
    CM_PROB_DISABLED = 22
    CM_PROB_FAILED_INSTALL = 28
    CM_PROB_FAILED_POST_START = 43
    CM_PROB_PHANTOM = 45
}

function New-Node($State, [string] $Id, $Function, [string] $Status, [int] $Problem, [bool] $Present) {
    $code = if (Test-Habit $State 'text-problem-codes') { ([Problem]$Problem).ToString() }
    elseif (Test-Habit $State 'no-problem-codes') { $null } else { [Problem]$Problem }
    $bound = $Present -and $Function.driver -eq 'Bound'
    [pscustomobject]@{
        PSTypeName = 'Microsoft.Management.Infrastructure.CimInstance#ROOT/cimv2/Win32_PnPEntity'
        InstanceId = $Id
        Class = if ($bound) { $Function.class } else { $null }
        FriendlyName = $Function.name
        Status = $Status
        Service = if ($bound) { $Function.service } else { $null }
        Manufacturer = if ($bound) { $Function.manufacturer } else { $null }
        ConfigManagerErrorCode = $code
        Present = $Present
    }
}

function Get-Problem($Function) {
    if ($Function.disabled) { 22 } elseif ($Function.driver -eq 'Bound') { 0 } else { 28 }
}

function Get-Node($State) {
    if ($State.asking_guest) {
        # Inside a guest: other addresses, the same cards.
        foreach ($device in $State.guest) {
            # Once its driver is installed, which leaves a file.
            if ($device['works_with'] -and [System.IO.File]::Exists($device.works_with)) { $device.problem = 0; $device.status = 'OK' }
            [pscustomobject]@{
                InstanceId = $device.id; FriendlyName = $device.name; Status = $device.status
                ConfigManagerErrorCode = [Problem]$device.problem; Present = $true
            }
        }
        return
    }
    foreach ($function in @(Get-FakeFunction $State)) {
        if ($function.dismounted) {
            # Only a memory of it, and a node of its own that says "- Dismounted" in the host's language.
            New-Node $State ('PCI\' + $function.tail) $function 'Unknown' 45 $false
            New-Node $State ('PCIP\' + $function.tail) @{ name = $function.name + ' - Dismounted'; driver = 'None' } 'OK' 0 $true
        } else {
            $problem = Get-Problem $function
            New-Node $State ('PCI\' + $function.tail) $function $(if ($problem) { 'Error' } else { 'OK' }) $problem $true
        }
    }
    [pscustomobject]@{
        InstanceId = 'ACPI\PNP0C0C\2&DABA3FF&0'; Class = 'System'; FriendlyName = 'ACPI Power Button'; Status = 'OK'
        Service = $null; Manufacturer = '(Standard system devices)'; ConfigManagerErrorCode = [Problem]0; Present = $true
    }
}

function Get-PnpDevice {
    [CmdletBinding(DefaultParameterSetName = 'ByInstanceId')]
    param(
        [Parameter(ParameterSetName = 'ByInstanceId', Position = 0, ValueFromPipelineByPropertyName)] [Alias('DeviceId')] [string[]] $InstanceId,
        [Parameter(ParameterSetName = 'ByFriendlyName', ValueFromPipelineByPropertyName)] [string[]] $FriendlyName,
        [Parameter(ParameterSetName = 'ByInstanceId')] [Parameter(ParameterSetName = 'ByFriendlyName')]
        [Parameter(ParameterSetName = 'ByPresence')] [Parameter(ParameterSetName = 'ByClass')] [string[]] $Class,
        [Parameter(ParameterSetName = 'ByInstanceId')] [Parameter(ParameterSetName = 'ByFriendlyName')]
        [Parameter(ParameterSetName = 'ByPresence')] [Parameter(ParameterSetName = 'ByClass')] [switch] $PresentOnly,
        [Parameter(ParameterSetName = 'ByInstanceId')] [Parameter(ParameterSetName = 'ByFriendlyName')]
        [Parameter(ParameterSetName = 'ByPresence')] [Parameter(ParameterSetName = 'ByStatus')]
        [ValidateSet('OK', 'ERROR', 'DEGRADED', 'UNKNOWN')] [string[]] $Status,
        [Alias('Session')] [object[]] $CimSession, [int] $ThrottleLimit, [switch] $AsJob
    )
    $call = Start-FakeCall 'Get-PnpDevice' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $nodes = @(Get-Node $call.State)
    if ($PresentOnly) { $nodes = @($nodes | Where-Object Present) }
    if ($InstanceId) {
        $nodes = @($nodes | Where-Object { $node = $_; @($InstanceId | Where-Object { $node.InstanceId -like $_ }).Count })
        if (-not $nodes.Count) {
            throw (New-FakeError 'Get-PnpDevice' (Get-FakeText $call.State 'pnp') 'CmdletizationQuery_NotFound' 'ObjectNotFound' -2146233088)
        }
    }
    $nodes
}

$script:Guids = @{
    '{A45C254E-DF1C-4EFD-8020-67D146A850E0} 37' = 'DEVPKEY_Device_LocationPaths'
    '{4340A6C5-93FA-4706-972C-7B648008A5A7} 3' = 'DEVPKEY_Device_ProblemCode'
    '{540B947E-8B40-45BC-A8A2-6A0B894CBDA2} 3' = 'DEVPKEY_Device_Numa_Node'
}
$script:PciKeys = @{
    1 = 'DeviceType'; 3 = 'BaseClass'; 4 = 'SubClass';
    14 = 'InterruptSupport'; 15 = 'InterruptMessageMaximum'; 16 = 'BarTypes'
    31 = 'AcsCompatibleUpHierarchy'; 34 = 'RequiresReservedMemoryRegion'; 37 = 'OnPostPath'; 40 = 'SerialNumber'
}
foreach ($number in $script:PciKeys.Keys) {
    $script:Guids["{3AB22E31-8264-4B4E-9AF5-A8D2D8E33E62} $number"] = 'DEVPKEY_PciDevice_' + $script:PciKeys[$number]
}

function Get-PnpDeviceProperty {
    [CmdletBinding(DefaultParameterSetName = 'ByInstanceId', SupportsShouldProcess)]
    param(
        [Parameter(Mandatory, ParameterSetName = 'ByInstanceId', ValueFromPipelineByPropertyName)] [Alias('DeviceId')] [string[]] $InstanceId,
        [Parameter(Mandatory, ParameterSetName = 'InputObject (cdxml)', ValueFromPipeline)] [object[]] $InputObject,
        [Parameter(Position = 0, ValueFromPipelineByPropertyName)] [Alias('Key')] [string[]] $KeyName,
        [Alias('Session')] [object[]] $CimSession, [int] $ThrottleLimit, [switch] $AsJob
    )
    $call = Start-FakeCall 'Get-PnpDeviceProperty' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $state = $call.State
    foreach ($id in $InstanceId) {
        $function = @(Get-FakeFunction $state | Where-Object {
                ($(if ($_.dismounted) { 'PCIP\' } else { 'PCI\' }) + $_.tail) -eq $id })[0]
        if (-not $function) {
            throw (New-FakeError 'Get-PnpDeviceProperty' (Get-FakeText $state 'pnp') 'CmdletizationQuery_NotFound' 'ObjectNotFound' -2146233088)
        }
        foreach ($key in $KeyName) {
            $name = $script:Guids[$key]
            if (-not $name) { throw (New-FakeError 'Get-PnpDeviceProperty' "Unknown key $key" 'KeyName' 'InvalidArgument' -2147024809) }
            $short = ($name -replace '^DEVPKEY_(Device|PciDevice)_', '').Replace('_', '')
            $data = switch ($short) {
                'LocationPaths' { , @(@($function.acpi, $function.path, $function.acpi_after) | Where-Object { $_ }) }
                'ProblemCode' { [uint32](Get-Problem $function) }
                default { $function.properties[$short] }
            }
            # As while Windows rearranges its devices: present, and some of it is not told.
            if (@($function['untold']) -contains $short) { $data = $null }
            # A dismounted device may tell no class.
            if ($function.dismounted -and (Test-Habit $state 'silent-pool')) { $data = $null }
            [pscustomobject]@{
                InstanceId = $id
                KeyName = if (Test-Habit $state 'raw-keys') { $key.Replace(' ', '  ') } else { $name }
                Type = if ($null -eq $data) { 'Empty' } else { $data.GetType().Name }
                Data = $data
            }
        }
    }
}

function Set-Disabled($Call, [string[]] $InstanceId, [bool] $Disabled) {
    if (Test-FakeEnd $Call) { return }
    foreach ($id in $InstanceId) {
        $found = @($Call.State.functions | Where-Object { $_.in_slot -and -not $_.dismounted -and ('PCI\' + $_.tail) -eq $id })
        if (-not $found.Count) {
            throw (New-FakeError $Call.Command (Get-FakeText $Call.State 'pnp') 'CmdletizationQuery_NotFound' 'ObjectNotFound' -2146233088)
        }
        $found[0].disabled = $Disabled
    }
    Complete-FakeCall $Call
}

# Asked for confirmation, which nobody can give here: ConfirmImpact is high.
function Disable-PnpDevice {
    [CmdletBinding(DefaultParameterSetName = 'ByInstanceId', SupportsShouldProcess, ConfirmImpact = 'High')]
    param(
        [Parameter(Mandatory, ParameterSetName = 'ByInstanceId', Position = 0, ValueFromPipelineByPropertyName)] [Alias('DeviceId')] [string[]] $InstanceId,
        [Parameter(Mandatory, ParameterSetName = 'InputObject (cdxml)', ValueFromPipeline)] [object[]] $InputObject,
        [Alias('Session')] [object[]] $CimSession, [int] $ThrottleLimit, [switch] $AsJob, [switch] $PassThru
    )
    $call = Start-FakeCall 'Disable-PnpDevice' $PSBoundParameters
    if ($PSCmdlet.ShouldProcess([string]$InstanceId)) { Set-Disabled $call $InstanceId $true }
}

function Enable-PnpDevice {
    [CmdletBinding(DefaultParameterSetName = 'ByInstanceId', SupportsShouldProcess, ConfirmImpact = 'High')]
    param(
        [Parameter(Mandatory, ParameterSetName = 'ByInstanceId', Position = 0, ValueFromPipelineByPropertyName)] [Alias('DeviceId')] [string[]] $InstanceId,
        [Parameter(Mandatory, ParameterSetName = 'InputObject (cdxml)', ValueFromPipeline)] [object[]] $InputObject,
        [Alias('Session')] [object[]] $CimSession, [int] $ThrottleLimit, [switch] $AsJob, [switch] $PassThru
    )
    $call = Start-FakeCall 'Enable-PnpDevice' $PSBoundParameters
    if ($PSCmdlet.ShouldProcess([string]$InstanceId)) { Set-Disabled $call $InstanceId $false }
}

Export-ModuleMember -Function Get-PnpDevice, Get-PnpDeviceProperty, Disable-PnpDevice, Enable-PnpDevice
