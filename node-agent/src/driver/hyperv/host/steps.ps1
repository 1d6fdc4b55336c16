# The steps. Each checks, acts, and waits until it has seen what it did; what it returns is whether there was anything
# to do. Done already is done: every step can be repeated.
#
# Each names one VM or one device. None acts on a list, and none is given a pattern.

# Kinds of functions that a graphics card has: display, sound, serial bus, accelerator. A disk or a network card is never
# taken from the host, whoever asks.
$script:MovableClasses = @(3, 4, 12, 18)

# Of the serial buses, those that graphics cards have: USB and "other", which is how the controller of a Type-C socket shows
# itself. Fibre Channel (4) and InfiniBand (6) are serial buses, too, with disks and networks behind them.
# Source: pci.ids, class 0c.
$script:SerialBus = 12
$script:MovableBuses = @(3, 128)

# Longest pause between two looks at the effect of a step, in milliseconds.
$script:Pause = 250

function Test-Time($Clock, [uint64] $LimitMs) {
    if ([uint64]$Clock.ElapsedMilliseconds -ge $LimitMs) { return $false }
    Start-Sleep -Milliseconds ([math]::Min($script:Pause, $LimitMs))
    return $true
}

function Confirm-Movable($Function) {
    $movable = $script:MovableClasses -contains $Function.base_class
    if ($Function.base_class -eq $script:SerialBus) { $movable = $script:MovableBuses -contains $Function.sub_class }
    if (-not $movable) {
        Stop-Request 'Refused' ('the device at ' + $Function.location_path + ' is of class ' + $Function.base_class +
            ', subclass ' + $Function.sub_class + ', no function of a graphics card')
    }
}

function Confirm-Off($Vm) {
    $state = Get-Text (Get-Field $Vm 'State')
    if ($state -cne 'Off') { Stop-Request 'Refused' ('the VM is ' + $state + '; it must be Off') }
}

# A VM with a device can be neither saved nor restored, so one that can be restored to a saved state gets none.
function Confirm-NoSavedState($Vm, [guid] $Id) {
    $saved = @(@(Get-VMSnapshot -VM (Confirm-Vm $Vm $Id) -ErrorAction Stop) |
            Where-Object { $null -ne $_ -and (Test-SavedState $_) })
    if ($saved.Count -gt 0) {
        Stop-Request 'Refused' ('the VM has ' + $saved.Count + ' checkpoints that hold a saved state, which no VM with a ' +
            'device can go back to: delete them first')
    }
}

function Get-RequiredHostFunction([string] $Path) {
    $function = Get-HostFunctionAt $Path
    if ($null -eq $function) { Stop-Request 'NotThere' ('the host has no device at ' + $Path) }
    return $function
}

# Waits until the host's device at a path is enabled, or disabled.
function Wait-Enabled([string] $Path, [bool] $Enabled, [uint64] $LimitMs) {
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    do {
        $function = Get-HostFunctionAt $Path
        $known = $null -ne $function -and $null -ne $function.problem
        if ($known -and ($function.problem -ne 22) -eq $Enabled) { return }
    } while (Test-Time $clock $LimitMs)
    Stop-Request 'Unconfirmed' 'the device does not show as enabled, or disabled, as it was asked for'
}

function Invoke-Disable($Arguments) {
    Confirm-Arguments $Arguments @('location_path', 'settle_ms')
    $path = Confirm-LocationPath (Get-Field $Arguments 'location_path')
    $limit = Get-SettleArgument $Arguments
    $function = Get-RequiredHostFunction $path
    Confirm-Movable $function
    if ($function.problem -eq 22) { return $false }
    $null = Disable-PnpDevice -InstanceId (Confirm-InstanceId $function.instance_id) -Confirm:$false -ErrorAction Stop
    Wait-Enabled $path $false $limit
    return $true
}

function Invoke-Enable($Arguments) {
    Confirm-Arguments $Arguments @('location_path', 'settle_ms')
    $path = Confirm-LocationPath (Get-Field $Arguments 'location_path')
    $limit = Get-SettleArgument $Arguments
    $function = Get-RequiredHostFunction $path
    if ($null -ne $function.problem -and $function.problem -ne 22) { return $false }
    $null = Enable-PnpDevice -InstanceId (Confirm-InstanceId $function.instance_id) -Confirm:$false -ErrorAction Stop
    Wait-Enabled $path $true $limit
    return $true
}

# Waits until a device has left the host for the pool, or come back.
function Wait-Pooled([string] $Path, [bool] $Pooled, [uint64] $LimitMs) {
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    do {
        # The pool first: as long as that is not so, the host need not be asked.
        if (($null -ne (Find-InPool $Path)) -eq $Pooled -and ($null -ne (Get-HostFunctionAt $Path)) -ne $Pooled) { return }
    } while (Test-Time $clock $LimitMs)
    Stop-Request 'Unconfirmed' 'the device does not show in the pool, or in the host, as it was asked for'
}

# What is in a pool that somebody made, a cluster hands out by itself: it is neither moved nor given to a VM here.
function Confirm-RootPool($Pooled) {
    if ($null -ne $Pooled.native_pool) {
        Stop-Request 'Refused' ('the device is in the pool ' + $Pooled.native_pool + ', which gives devices to VMs by itself')
    }
}

# Force overrides the demand for a mitigation driver and for ACS, both at once: only by the node's policy.
function Invoke-Dismount($Arguments) {
    Confirm-Arguments $Arguments @('location_path', 'force', 'settle_ms')
    $path = Confirm-LocationPath (Get-Field $Arguments 'location_path')
    $force = Get-BoolArgument $Arguments 'force'
    $limit = Get-SettleArgument $Arguments
    $function = Get-HostFunctionAt $path
    if ($null -eq $function) {
        $pooled = Find-InPool $path
        if ($null -eq $pooled) {
            Stop-Request 'NotThere' ('no device at ' + $path + ', neither in the host nor in the pool')
        }
        Confirm-RootPool $pooled
        return $false
    }
    Confirm-Movable $function
    $null = Dismount-VMHostAssignableDevice -LocationPath (Confirm-LocationPath $path) -Force:$force -Confirm:$false `
        -ErrorAction Stop
    Wait-Pooled $path $true $limit
    return $true
}

function Invoke-Mount($Arguments) {
    Confirm-Arguments $Arguments @('location_path', 'settle_ms')
    $path = Confirm-LocationPath (Get-Field $Arguments 'location_path')
    $limit = Get-SettleArgument $Arguments
    $pooled = Find-InPool $path
    if ($null -eq $pooled) {
        if ($null -ne (Get-HostFunctionAt $path)) { return $false }
        Stop-Request 'NotThere' ('no device at ' + $path + ', neither in the host nor in the pool')
    }
    Confirm-RootPool $pooled
    $holders = Get-Holder $path
    if ($holders.Count -gt 0) { Stop-Request 'Refused' ('VM ' + $holders[0] + ' lists the device') }
    $null = Mount-VMHostAssignableDevice -LocationPath (Confirm-LocationPath $path) -Confirm:$false -ErrorAction Stop
    Wait-Pooled $path $false $limit
    return $true
}

# A device can be put into two VMs; only the second start fails. So all VMs are asked first.
function Invoke-Attach($Arguments) {
    Confirm-Arguments $Arguments @('vm', 'location_path', 'settle_ms')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $path = Confirm-LocationPath (Get-Field $Arguments 'location_path')
    $limit = Get-SettleArgument $Arguments
    $vm = Get-VmById $id
    $holders = Get-Holder $path
    foreach ($holder in $holders) {
        if ([guid]$holder -ne $id) { Stop-Request 'Refused' ('VM ' + $holder + ' lists the device') }
    }
    if ($holders.Count -gt 0) { return $false }
    Confirm-Off $vm
    Confirm-NoSavedState $vm $id
    $pooled = Find-InPool $path
    if ($null -eq $pooled) { Stop-Request 'NotThere' ('no device at ' + $path + ' is in the pool') }
    Confirm-RootPool $pooled
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    $added = $false
    while (-not $added) {
        # Each time anew: while this waits, another agent's step, or a person, may have given the device away.
        $holders = Get-Holder $path
        if ($holders.Count -gt 0) { Stop-Request 'Refused' ('VM ' + $holders[0] + ' lists the device') }
        try {
            $null = Add-VMAssignableDevice -VM (Confirm-Vm $vm $id) -LocationPath (Confirm-LocationPath $path) `
                -Confirm:$false -ErrorAction Stop
            $added = $true
        } catch {
            # The pool shows it and yet it "was not found": the cmdlet looks into a cache that lags after a dismount.
            if ($_.CategoryInfo.Category -ne 'ObjectNotFound' -or -not (Test-Time $clock $limit)) { throw }
        }
    }
    Wait-Listed $id $path $true $limit
    return $true
}

function Wait-Listed([guid] $Id, [string] $Path, [bool] $Listed, [uint64] $LimitMs) {
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    do {
        $mine = @((Get-Holder $Path) | Where-Object { [guid]$_ -eq $Id })
        if (($mine.Count -gt 0) -eq $Listed) { return }
    } while (Test-Time $clock $LimitMs)
    Stop-Request 'Unconfirmed' 'the VM does not list the device, or still does, against what was asked for'
}

# Records of one VM at exactly this path; with an empty path those whose device is gone.
function Get-RecordObject($Vm, [guid] $Id, [string] $Path) {
    $devices = Get-Record @((Confirm-Vm $Vm $Id))
    return , @($devices | Where-Object {
            [string](Get-Field $_ 'LocationPath') -ceq $Path -and ($Path -cne '' -or (Test-RootPool $_))
        })
}

# By object: with a VM's name and no path this cmdlet takes all of its devices.
function Invoke-Detach($Arguments) {
    Confirm-Arguments $Arguments @('vm', 'location_path', 'settle_ms')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $path = Confirm-LocationPath (Get-Field $Arguments 'location_path')
    $limit = Get-SettleArgument $Arguments
    $vm = Get-VmById $id
    $records = Get-RecordObject $vm $id $path
    if ($records.Count -eq 0) { return $false }
    Confirm-Off $vm
    foreach ($record in $records) {
        $null = Remove-VMAssignableDevice -VMAssignableDevice (Confirm-Assigned $record $path) -Confirm:$false `
            -ErrorAction Stop
    }
    Wait-Listed $id $path $false $limit
    return $true
}

# Records without a path cannot be named one by one; how many the agent saw must be how many there are.
function Invoke-DetachStale($Arguments) {
    Confirm-Arguments $Arguments @('vm', 'records', 'settle_ms')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $expected = Get-CountArgument $Arguments 'records' 1 256
    $limit = Get-SettleArgument $Arguments
    $vm = Get-VmById $id
    $records = Get-RecordObject $vm $id ''
    if ($records.Count -eq 0) { return $false }
    if ([uint64]$records.Count -gt $expected) {
        Stop-Request 'Refused' ('the VM has ' + $records.Count + ' records of devices that are gone, not ' + $expected)
    }
    Confirm-Off $vm
    foreach ($record in $records) {
        $null = Remove-VMAssignableDevice -VMAssignableDevice (Confirm-Assigned $record '') -Confirm:$false `
            -ErrorAction Stop
    }
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    do {
        if ((Get-RecordObject $vm $id '').Count -eq 0) { return $true }
    } while (Test-Time $clock $limit)
    Stop-Request 'Unconfirmed' 'records of devices that are gone are still there'
}

function Wait-State([guid] $Id, [string] $State, $Job, [uint64] $LimitMs) {
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    do {
        if ([string](Get-Field (Get-VmById $Id) 'State') -ceq $State) { return }
        Confirm-Job $Job
    } while (Test-Time $clock $LimitMs)
    Stop-Request 'Unconfirmed' ('the VM is not yet ' + $State)
}

# A background job that failed: its own error, where it tells one. Unproven: where Hyper-V's jobs keep it; without it the
# wait goes on, and its end says that the VM is not yet there.
function Confirm-Job($Job) {
    foreach ($holder in @($Job, @((Get-Field $Job 'ChildJobs'))[0])) {
        $errors = Get-Field $holder 'Error'
        foreach ($problem in @($errors)) {
            if ($problem -is [System.Management.Automation.ErrorRecord]) { throw $problem }
        }
    }
}

# From Off only: a paused or saved VM is somebody's, and with a device it cannot go on.
function Invoke-StartVm($Arguments) {
    Confirm-Arguments $Arguments @('vm', 'settle_ms')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $limit = Get-SettleArgument $Arguments
    $vm = Get-VmById $id
    $state = [string](Get-Field $vm 'State')
    if ($state -ceq 'Running') { return $false }
    $script:Asked[[string]$id] = $null
    if ($state -cne 'Starting') {
        Confirm-Off $vm
        $null = Start-VM -VM (Confirm-Vm $vm $id) -Confirm:$false -ErrorAction Stop
    }
    Wait-State $id 'Running' $null $limit
    return $true
}

# The jobs in which guests are being asked, by VM: while one runs, its guest is not asked again, whatever the VM's state says.
$script:Asked = @{}

# Whether a guest is still being asked. Unproven: that Hyper-V's jobs show a state as others do; where they do not, the guest
# is asked anew, which does no harm.
function Test-Asked([string] $Id) {
    return @('Running', 'NotStarted') -ccontains [string](Get-Field $script:Asked[$Id] 'State')
}

# Asking the guest takes as long as the guest likes (up to five minutes, then it is forced), so that goes on in the
# background and the agent looks again; pulling the plug is quick. A saved state is somebody's work, device or not: a person
# deletes it, or starts the VM.
function Invoke-StopVm($Arguments) {
    Confirm-Arguments $Arguments @('vm', 'how', 'settle_ms')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $how = Get-ChoiceArgument $Arguments 'how' @('ShutDown', 'TurnOff')
    $limit = Get-SettleArgument $Arguments
    $vm = Get-VmById $id
    $key = [string]$id
    $state = [string](Get-Field $vm 'State')
    if ($state -ceq 'Off') {
        $script:Asked[$key] = $null
        return $false
    }
    if ($state -ceq 'Saved' -or $state -ceq 'FastSaved') {
        Stop-Request 'Refused' 'the VM has a saved state, which would be lost'
    } elseif ($how -ceq 'TurnOff') {
        $script:Asked[$key] = $null
        $null = Stop-VM -VM (Confirm-Vm $vm $id) -TurnOff -Force -Confirm:$false -ErrorAction Stop
    } elseif ($state -ceq 'Running') {
        if (-not (Test-Asked $key)) {
            $script:Asked[$key] = Stop-VM -VM (Confirm-Vm $vm $id) -Force -AsJob -Confirm:$false -ErrorAction Stop
        }
    } elseif ($state -cne 'Stopping') {
        Stop-Request 'Refused' ('the VM is ' + $state + '; its guest cannot be asked to shut down')
    }
    Wait-State $id 'Off' $script:Asked[$key] $limit
    $script:Asked[$key] = $null
    return $true
}

# With a role goes everything in it: it may hold this VM and its configuration, once each, and nothing else. The types are
# named as in the cluster's API, in every language (clusapi.h: CLUS_RESTYPE_NAME_VM, CLUS_RESTYPE_NAME_VM_CONFIG).
function Confirm-OwnRole($Role) {
    $held = @{ 'Virtual Machine' = 0; 'Virtual Machine Configuration' = 0 }
    foreach ($resource in @(Get-ClusterResource -InputObject (Confirm-Role $Role) -ErrorAction Stop)) {
        if ($null -eq $resource) { continue }
        $type = Get-Field $resource 'ResourceType'
        $name = Get-Text (Get-Field $type 'Name')
        if ($null -eq $name) { $name = [string]$type }
        if ($held.ContainsKey($name)) { $held[$name] = 1 + $held[$name] }
        if (-not $held.ContainsKey($name) -or $held[$name] -gt 1) {
            Stop-Request 'Refused' ('the role of the VM holds ' + (Get-Field $resource 'Name') + ' (' + $name +
                ') as well, which would be removed with it: take that out of the role, or make the VM standalone by hand')
        }
    }
    if ($held['Virtual Machine'] -ne 1) {
        Stop-Request 'Refused' 'the cluster does not tell what the role of the VM holds'
    }
}

# Unproven: that a VM stays on its node when its role goes. So the role must be there and hold nothing but this VM, and
# afterwards the VM must still be there.
function Invoke-MakeStandalone($Arguments) {
    Confirm-Arguments $Arguments @('vm', 'allow', 'role', 'settle_ms')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $limit = Get-SettleArgument $Arguments
    if (-not (Get-BoolArgument $Arguments 'allow')) { Stop-Request 'Refused' 'the request does not allow it' }
    $name = Get-Field $Arguments 'role'
    if ($name -isnot [string] -or $name -ceq '') { Stop-Request 'Invalid' 'role must be the name of a role' }
    $vm = Get-VmById $id
    if ((Get-Field $vm 'IsClustered') -eq $false) { return $false }
    $roles = @(Get-ClusterGroup -VMId (Confirm-VmId ([string]$id)) -ErrorAction Stop)
    if ($roles.Count -ne 1) { Stop-Request 'NotThere' 'the cluster does not have one role for this VM' }
    # What is removed must be what was written down: nobody can read it afterwards.
    if ((Get-Text (Get-Field $roles[0] 'Name')) -cne $name) {
        $script:Roles[[string]$id] = $null
        Stop-Request 'Refused' 'the role of the VM is not the one that was seen before'
    }
    Confirm-OwnRole $roles[0]
    $null = Remove-ClusterGroup -VMId (Confirm-VmId ([string]$id)) -RemoveResources -Force -Confirm:$false `
        -ErrorAction Stop
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    do {
        if ((Get-Field (Get-VmById $id) 'IsClustered') -eq $false) { return $true }
    } while (Test-Time $clock $limit)
    Stop-Request 'Unconfirmed' 'the VM still shows as clustered'
}
