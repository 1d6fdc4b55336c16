# One complete look, and the closer look at what a step is about.
# Must never change anything.

# Display controllers and processing accelerators.
$script:GpuClasses = @(3, 18)

# Everything that has to do with GPUs: display and accelerator functions, whatever else is on their cards and on the
# cards that are (partly) in the pool, the pool, and all VMs.
function Invoke-Observe($Arguments) {
    Confirm-Arguments $Arguments @()
    $system = Get-CimInstance -ClassName Win32_OperatingSystem -ErrorAction Stop
    $found = Get-HostFunction
    $pool = Get-PoolFunction
    $cards = @{}
    foreach ($function in $found.Values) {
        # One that does not say what it is may be a GPU.
        if ($null -eq $function.base_class -or $script:GpuClasses -contains $function.base_class) { $cards[(Get-CardKey $function.location_path)] = $true }
    }
    foreach ($function in $pool) {
        if ($null -ne $function.location_path) { $cards[(Get-CardKey $function.location_path)] = $true }
    }
    $functions = @()
    foreach ($path in @($found.Keys | Sort-Object)) {
        if ($cards.ContainsKey((Get-CardKey $path))) { $functions += $found[$path] }
    }
    $classes = Get-PoolClass $pool
    foreach ($function in $pool) { $function.base_class = $classes[[string]$function.instance_id] }
    [ordered]@{
        boot_time = Get-BootTime $system
        functions = $functions
        unreadable = $script:Unreadable
        pool = $pool
        vms = ConvertTo-VmView (Get-AllVms)
    }
}

# Unproven: whether a dismounted device still tells its class. Without it the agent goes by what it remembers of the
# device and by its id.
function Get-PoolClass($Pool) {
    $classes = @{}
    $ids = @()
    foreach ($function in $Pool) { if ($null -ne $function.instance_id) { $ids += $function.instance_id } }
    try {
        $properties = Get-Property $ids @('BaseClass')
    } catch {
        return $classes
    }
    foreach ($id in $ids) {
        if ($properties.ContainsKey($id)) { $classes[$id] = Get-Number $properties[$id]['BaseClass'] }
    }
    return $classes
}

# What is known now of the device and the VM that a step names: part of the answer to every step, failed ones included.
function Get-Seen($Arguments) {
    $seen = [ordered]@{}
    $path = Get-Field $Arguments 'location_path'
    if ($null -ne $path) { $seen.device = Get-DeviceView (Confirm-LocationPath $path) }
    $vm = Get-Field $Arguments 'vm'
    if ($null -ne $vm) {
        $id = Confirm-VmId $vm
        $seen.vm = $null
        foreach ($view in (ConvertTo-VmView @((Get-AllVms) | Where-Object { [guid](Get-Field $_ 'Id') -eq $id }))) {
            $seen.vm = $view
        }
    }
    return $seen
}

# Where a device is: among the host's, in the pool, in VMs.
function Get-DeviceView([string] $Path) {
    [ordered]@{
        location_path = $Path
        host = Get-HostFunctionAt $Path
        pool = Find-InPool $Path
        listed_by = Get-Holder $Path
    }
}

# Location paths are compared byte by byte, as Hyper-V does.
function Find-InPool([string] $Path) {
    foreach ($function in (Get-PoolFunction)) {
        if ([string]$function.location_path -ceq $Path) { return $function }
    }
    return $null
}

# Ids of all VMs whose configuration lists a device.
function Get-Holder([string] $Path) {
    $holders = @()
    foreach ($device in (Get-Record (Get-AllVms))) {
        if ([string](Get-Field $device 'LocationPath') -ceq $Path) { $holders += [string](Get-Field $device 'VMId') }
    }
    return , $holders
}
