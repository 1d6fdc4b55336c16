# The few commands of the FailoverClusters module that matter here, as documented, on a fake host.

Import-Module (Join-Path $PSScriptRoot '../BerthFake/BerthFake.psm1')
Set-StrictMode -Version 3.0

function Get-Cluster {
    [CmdletBinding()]
    param([Parameter(Position = 0)] [string] $Name, [string] $Domain)
    $call = Start-FakeCall 'Get-Cluster' $PSBoundParameters
    if ($null -eq $call.State.cluster) {
        throw (New-FakeError 'Get-Cluster' 'The cluster service is not running.' 'Get-Cluster' 'ConnectionError' -2147023174)
    }
    [pscustomobject]@{ Name = $call.State.cluster }
}

function Select-Group($State, $VMId, $Name) {
    $clustered = @($State.vms | Where-Object { $_.clustered })
    # Neither a name nor an id is every one.
    if ($VMId) { @($clustered | Where-Object { $_.id -eq [string]$VMId }) }
    elseif ($Name) { @($clustered | Where-Object { $Name -contains $_.name }) } else { $clustered }
}

function Get-ClusterGroup {
    [CmdletBinding()]
    param(
        [Parameter(Position = 0)] [System.Collections.Specialized.StringCollection] $Name,
        [Parameter(ValueFromPipelineByPropertyName)] [guid] $VMId,
        [Parameter(ValueFromPipeline)] [psobject] $InputObject, [string] $Cluster
    )
    $call = Start-FakeCall 'Get-ClusterGroup' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    $found = @(Select-Group $call.State $VMId $Name)
    if (-not $found.Count) {
        throw (New-FakeError 'Get-ClusterGroup' (Get-FakeText $call.State 'group') 'Get-ClusterGroup' 'ObjectNotFound' -2147019883)
    }
    foreach ($vm in $found) {
        # A role is called as its VM was when it was made one, unless somebody calls it otherwise.
        $name = if ($vm['role_name']) { $vm.role_name } else { $vm.name }
        [pscustomobject]@{ Name = $name; OwnerNode = $call.State.host.computer; State = 'Online'; GroupType = 'VirtualMachine'; Priority = 2000 }
    }
}

# What is in a role: the VM, its configuration, and whatever else somebody has put there.
function Get-ClusterResource {
    [CmdletBinding()]
    param(
        [Parameter(Position = 0)] [System.Collections.Specialized.StringCollection] $Name,
        [Parameter(ValueFromPipelineByPropertyName)] [guid] $VMId,
        [Parameter(ValueFromPipeline)] [psobject] $InputObject, [string] $Cluster
    )
    process {
        $call = Start-FakeCall 'Get-ClusterResource' $PSBoundParameters
        if (Test-FakeEnd $call) { return }
        $roles = @($call.State.vms | Where-Object { $_.clustered -and ($null -eq $InputObject -or $InputObject.Name -in $_.name, $_['role_name']) })
        foreach ($vm in $roles) {
            $held = @(
                @{ name = 'Virtual Machine ' + $vm.name; type = 'Virtual Machine' }
                @{ name = 'Virtual Machine Configuration ' + $vm.name; type = 'Virtual Machine Configuration' }
            ) + @($vm['role_resources'] | Where-Object { $_ })
            foreach ($resource in $held) {
                $type = if (Test-Habit $call.State 'plain-resource-types') { $resource.type } else { [pscustomobject]@{ Name = $resource.type } }
                [pscustomobject]@{ Name = $resource.name; ResourceType = $type; OwnerGroup = $vm.name; State = 'Online' }
            }
        }
    }
}

function Remove-ClusterGroup {
    [CmdletBinding(SupportsShouldProcess, ConfirmImpact = 'High')]
    param(
        [Parameter(Position = 0)] [System.Collections.Specialized.StringCollection] $Name,
        [Parameter(ValueFromPipelineByPropertyName)] [guid] $VMId,
        [Parameter(ValueFromPipeline)] [psobject] $InputObject, [string] $Cluster,
        [switch] $Force, [switch] $RemoveResources
    )
    $call = Start-FakeCall 'Remove-ClusterGroup' $PSBoundParameters
    if (Test-FakeEnd $call) { return }
    if (-not $RemoveResources) {
        throw (New-FakeError 'Remove-ClusterGroup' 'The group still has resources.' 'Remove-ClusterGroup' 'InvalidOperation' -2147019862)
    }
    foreach ($vm in @(Select-Group $call.State $VMId $Name)) {
        $vm.clustered = $false
        # Everything in it goes.
        if ($vm.ContainsKey('role_resources')) { $vm.role_resources = @() }
    }
    if (Test-Habit $call.State 'role-takes-the-vm') {
        $call.State.vms = @($call.State.vms | Where-Object { $_.id -ne [string]$VMId })
    }
    Complete-FakeCall $call
}

Export-ModuleMember -Function Get-Cluster, Get-ClusterGroup, Get-ClusterResource, Remove-ClusterGroup
