# Get-CimInstance for the few classes that a survey asks for.

Import-Module (Join-Path $PSScriptRoot '../BerthFake/BerthFake.psm1')
Set-StrictMode -Version 3.0

function Get-CimInstance {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory, Position = 0)] [string] $ClassName,
        [string[]] $ComputerName, [switch] $KeyOnly, [string] $Namespace, [uint32] $OperationTimeoutSec,
        [string] $QueryDialect, [switch] $Shallow, [string] $Filter, [string[]] $Property
    )
    $call = Start-FakeCall 'Get-CimInstance' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $state = $call.State
    $present = @(Get-FakeFunction $state | Where-Object { -not $_.dismounted -and -not $_.disabled })
    switch ($ClassName) {
        'Win32_OperatingSystem' {
            [pscustomobject]@{
                Caption = $state.host.system
                Version = $state.host.version
                ProductType = [uint32]$state.host.product_type
                OperatingSystemSKU = [uint32]$state.host.sku
                LastBootUpTime = [datetimeoffset]::FromUnixTimeSeconds($state.host.boot_seconds).LocalDateTime
            }
        }
        'Win32_ComputerSystem' {
            [pscustomobject]@{
                Name = $state.host.computer
                NumberOfLogicalProcessors = [uint32]$state.host.processors
                TotalPhysicalMemory = [uint64]$state.host.memory_bytes
            }
        }
        'Win32_DeviceMemoryAddress' {
            foreach ($window in $present.windows) {
                [pscustomobject]@{
                    Name = '0x{0:X8}-0x{1:X8}' -f $window.start, $window.end
                    StartingAddress = [uint64]$window.start
                    EndingAddress = [uint64]$window.end
                    MemoryType = 'WindowDecode'
                    Status = 'OK'
                }
            }
        }
        'Win32_PnPAllocatedResource' {
            $text = Test-Habit $state 'cim-text-references'
            foreach ($function in $present) {
                $id = 'PCI\' + $function.tail
                $dependent = if ($text) {
                    '\\NODE1\root\cimv2:Win32_PnPEntity.DeviceID="' + $id.Replace('\', '\\') + '"'
                } else { [pscustomobject]@{ DeviceID = $id } }
                foreach ($window in $function.windows) {
                    $antecedent = if ($text) {
                        '\\NODE1\root\cimv2:Win32_DeviceMemoryAddress.StartingAddress="' + $window.start + '"'
                    } else { [pscustomobject]@{ StartingAddress = [uint64]$window.start } }
                    [pscustomobject]@{ Antecedent = $antecedent; Dependent = $dependent }
                }
                foreach ($interrupt in $function.interrupts) {
                    $antecedent = if ($text) {
                        '\\NODE1\root\cimv2:Win32_IRQResource.IRQNumber=' + $interrupt
                    } else { [pscustomobject]@{ IRQNumber = [uint32]$interrupt } }
                    [pscustomobject]@{ Antecedent = $antecedent; Dependent = $dependent }
                }
                # A port, which a survey must not take for memory.
                $antecedent = if ($text) {
                    '\\NODE1\root\cimv2:Win32_PortResource.StartingAddress="57344"'
                } else { [pscustomobject]@{ StartingAddress = [uint64]57344 } }
                [pscustomobject]@{ Antecedent = $antecedent; Dependent = $dependent }
            }
        }
        default { throw (New-FakeError 'Get-CimInstance' "Invalid class $ClassName" 'HRESULT 0x80041010' 'MetadataError' -2147217392) }
    }
}

# The registry's policies, which no other machine has. A function goes before the cmdlet of the same name.
function Get-ItemProperty {
    [CmdletBinding(DefaultParameterSetName = 'LiteralPath')]
    param([Parameter(Mandatory, ParameterSetName = 'LiteralPath')] [string] $LiteralPath)
    $call = Start-FakeCall 'Get-ItemProperty' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $policy = $call.State.host['policy']
    if ($LiteralPath -ne 'HKLM:\SOFTWARE\Policies\Microsoft\Windows\HyperV' -or $null -eq $policy) {
        throw (New-FakeError 'Get-ItemProperty' "Cannot find path '$LiteralPath' because it does not exist." 'PathNotFound' 'ObjectNotFound' -2146233087)
    }
    [pscustomobject]$policy
}

Export-ModuleMember -Function Get-CimInstance, Get-ItemProperty
