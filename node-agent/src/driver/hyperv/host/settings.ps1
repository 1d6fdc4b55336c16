# A VM's settings: what the request names and what differs is set, one by one, then all is read again.
# The answer's "former" is what was there before, in the very form that the request takes: given back as it is, it
# restores the VM.

$script:SettingNames = @('stop_action', 'guest_cache_types', 'mmio_low_bytes', 'mmio_high_bytes', 'dynamic_memory',
    'memory_minimum_bytes', 'memory_maximum_bytes', 'checkpoint_type', 'automatic_checkpoints')

# The settings that a request names, checked: name -> value. Null stands for "as it is": this build cannot tell it.
function Get-WantedSettings($Given) {
    if ($Given -isnot [System.Management.Automation.PSCustomObject]) { Stop-Request 'Invalid' 'settings must be an object' }
    Confirm-Arguments $Given $script:SettingNames
    $wanted = [ordered]@{}
    foreach ($name in $script:SettingNames) {
        if ($null -eq (Get-Field $Given $name)) { continue }
        switch ($name) {
            'stop_action' { $wanted[$name] = Get-ChoiceArgument $Given $name @('TurnOff', 'Save', 'ShutDown') }
            'checkpoint_type' {
                $wanted[$name] = Get-ChoiceArgument $Given $name @('Disabled', 'Production', 'ProductionOnly', 'Standard')
            }
            'mmio_low_bytes' { $wanted[$name] = Get-CountArgument $Given $name 0 4294967295 }
            'mmio_high_bytes' { $wanted[$name] = Get-CountArgument $Given $name 0 18446744073709551615 }
            'memory_minimum_bytes' { $wanted[$name] = Get-CountArgument $Given $name 1 9223372036854775807 }
            'memory_maximum_bytes' { $wanted[$name] = Get-CountArgument $Given $name 1 9223372036854775807 }
            default { $wanted[$name] = Get-BoolArgument $Given $name }
        }
    }
    if ($wanted.Count -eq 0) { Stop-Request 'Invalid' 'settings names no setting' }
    return $wanted
}

# Names of wanted settings that are not so. The bounds of dynamic memory mean nothing to a VM without it.
function Get-Difference($Wanted, $Present) {
    $differing = @()
    $dynamic = $Present.dynamic_memory
    if ($null -ne $Wanted['dynamic_memory']) { $dynamic = $Wanted['dynamic_memory'] }
    foreach ($name in @($Wanted.Keys)) {
        $bound = $name -ceq 'memory_minimum_bytes' -or $name -ceq 'memory_maximum_bytes'
        if ($bound -and -not $dynamic) { continue }
        # A build that cannot tell automatic checkpoints has none.
        if ($name -ceq 'automatic_checkpoints' -and $null -eq $Present[$name] -and -not $Wanted[$name]) { continue }
        if ($Present[$name] -cne $Wanted[$name]) { $differing += $name }
    }
    return , $differing
}

# Most of these can be set only while the VM is off, so all are.
function Invoke-ConfigureVm($Arguments) {
    Confirm-Arguments $Arguments @('vm', 'settings', 'for_devices', 'settle_ms')
    $forDevices = $null -ne (Get-Field $Arguments 'for_devices') -and (Get-BoolArgument $Arguments 'for_devices')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $wanted = Get-WantedSettings (Get-Field $Arguments 'settings')
    $limit = Get-SettleArgument $Arguments
    $vm = Get-VmById $id
    $former = Get-Settings $vm
    $script:Extra.former = $former
    $differing = Get-Difference $wanted $former
    if ($differing.Count -eq 0) { return $false }
    Confirm-Off $vm
    if ($forDevices) { Confirm-NoSavedState $vm $id }
    if ($wanted['stop_action'] -ceq 'Save') {
        $devices = @(Get-VMAssignableDevice -VM (Confirm-Vm $vm $id) -ErrorAction Stop)
        if ($devices.Count -gt 0) { Stop-Request 'Refused' 'a VM with an assigned device cannot be saved' }
    }
    foreach ($name in $differing) { Set-Setting $vm $id $name $wanted }
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    do {
        $left = Get-Difference $wanted (Get-Settings (Get-VmById $id))
        if ($left.Count -eq 0) { return $true }
    } while (Test-Time $clock $limit)
    Stop-Request 'Unconfirmed' ('not as they were set: ' + [string]::Join(', ', $left))
}

function Set-Setting($Vm, [guid] $Id, [string] $Name, $Wanted) {
    $value = $Wanted[$Name]
    switch ($Name) {
        'stop_action' { Set-VM -VM (Confirm-Vm $Vm $Id) -AutomaticStopAction $value -ErrorAction Stop }
        'guest_cache_types' { Set-VM -VM (Confirm-Vm $Vm $Id) -GuestControlledCacheTypes $value -ErrorAction Stop }
        'mmio_low_bytes' { Set-VM -VM (Confirm-Vm $Vm $Id) -LowMemoryMappedIoSpace $value -ErrorAction Stop }
        'mmio_high_bytes' { Set-VM -VM (Confirm-Vm $Vm $Id) -HighMemoryMappedIoSpace $value -ErrorAction Stop }
        'dynamic_memory' {
            $least = $Wanted['memory_minimum_bytes']
            $most = $Wanted['memory_maximum_bytes']
            if ($value -and $null -ne $least -and $null -ne $most) {
                # Together: one after the other, the first might pass the other's former value.
                Set-VM -VM (Confirm-Vm $Vm $Id) -DynamicMemory -MemoryMinimumBytes $least -MemoryMaximumBytes $most `
                    -ErrorAction Stop
            } elseif ($value) {
                Set-VM -VM (Confirm-Vm $Vm $Id) -DynamicMemory -ErrorAction Stop
            } else {
                Set-VM -VM (Confirm-Vm $Vm $Id) -StaticMemory -ErrorAction Stop
            }
        }
        'memory_minimum_bytes' { Set-VM -VM (Confirm-Vm $Vm $Id) -MemoryMinimumBytes $value -ErrorAction Stop }
        'memory_maximum_bytes' { Set-VM -VM (Confirm-Vm $Vm $Id) -MemoryMaximumBytes $value -ErrorAction Stop }
        'checkpoint_type' { Set-VM -VM (Confirm-Vm $Vm $Id) -CheckpointType $value -ErrorAction Stop }
        'automatic_checkpoints' { Set-VM -VM (Confirm-Vm $Vm $Id) -AutomaticCheckpointsEnabled $value -ErrorAction Stop }
    }
}
