# Requests in, answers out, one line each.

# What the script cannot work without, by module. A test makes sure that this is exactly what it uses.
$script:Needed = [ordered]@{
    'Hyper-V' = [ordered]@{
        'Get-VM' = @('Id')
        'Get-VMHost' = @()
        'Get-VMSnapshot' = @('VM')
        'Get-VMNetworkAdapter' = @('VM')
        'Get-VMHostAssignableDevice' = @()
        'Get-VMAssignableDevice' = @('VM')
        'Set-VM' = @('VM', 'AutomaticStopAction', 'GuestControlledCacheTypes', 'LowMemoryMappedIoSpace',
            'HighMemoryMappedIoSpace', 'DynamicMemory', 'StaticMemory', 'MemoryMinimumBytes', 'MemoryMaximumBytes',
            'CheckpointType')
        'Start-VM' = @('VM', 'Confirm')
        'Stop-VM' = @('VM', 'TurnOff', 'Force', 'AsJob', 'Confirm')
        'Dismount-VMHostAssignableDevice' = @('LocationPath', 'Force', 'Confirm')
        'Mount-VMHostAssignableDevice' = @('LocationPath', 'Confirm')
        'Add-VMAssignableDevice' = @('VM', 'LocationPath', 'Confirm')
        'Remove-VMAssignableDevice' = @('VMAssignableDevice', 'Confirm')
    }
    'PnpDevice' = [ordered]@{
        'Get-PnpDevice' = @('InstanceId', 'PresentOnly')
        'Get-PnpDeviceProperty' = @('InstanceId', 'KeyName')
        'Disable-PnpDevice' = @('InstanceId', 'Confirm')
        'Enable-PnpDevice' = @('InstanceId', 'Confirm')
    }
}

# What it can do without: hosts outside a cluster, builds before automatic checkpoints and before pools of devices.
$script:Wanted = [ordered]@{
    'Hyper-V' = [ordered]@{
        'Set-VM' = @('AutomaticCheckpointsEnabled')
        'Get-VMResourcePool' = @('ResourcePoolType')
        'Get-VMHostAssignableDevice' = @('ResourcePoolName')
    }
    'FailoverClusters' = [ordered]@{
        'Get-Cluster' = @()
        'Get-ClusterGroup' = @('VMId')
        'Get-ClusterResource' = @('InputObject')
        'Remove-ClusterGroup' = @('VMId', 'RemoveResources', 'Force', 'Confirm')
    }
}

# What of a table this host lacks. Another product has a Get-VM, too: a command of another module counts as missing.
function Get-Lack($Table) {
    $lack = @()
    foreach ($module in @($Table.Keys)) {
        foreach ($name in @($Table[$module].Keys)) {
            $command = @(Get-Command -Name $name -ErrorAction SilentlyContinue)[0]
            if ($null -eq $command -or [string](Get-Field $command 'ModuleName') -ne $module) {
                $lack += $name
                continue
            }
            foreach ($parameter in $Table[$module][$name]) {
                if (-not $command.Parameters.ContainsKey($parameter)) { $lack += $name + ' -' + $parameter }
            }
        }
    }
    return , $lack
}

# Loaded by name and at once, so that no module of the same command names is found first.
$script:Modules = [ordered]@{}
foreach ($module in 'Hyper-V', 'PnpDevice', 'FailoverClusters') {
    $script:Modules[$module] = $null
    try {
        $null = Import-Module -Name $module -ErrorAction Stop 3>$null 6>$null
        $loaded = @(Get-Module -Name $module)[0]
        if ($null -ne $loaded) { $script:Modules[$module] = [string]$loaded.Version }
    } catch {
        # Told by hello.
        continue
    }
}
$script:Missing = Get-Lack $script:Needed
$script:Absent = Get-Lack $script:Wanted

function Invoke-Hello($Arguments) {
    Confirm-Arguments $Arguments @()
    [ordered]@{
        protocol = 1
        powershell = [string]$PSVersionTable.PSVersion
        edition = Get-Text $PSVersionTable['PSEdition']
        computer = [System.Environment]::MachineName
        culture = [cultureinfo]::CurrentUICulture.Name
        modules = $script:Modules
        missing = $script:Missing
        absent = $script:Absent
    }
}

# A step answers whether it changed anything, and what is seen now of what it is about.
function Invoke-Step([string] $Operation, $Arguments) {
    $changed = $false
    switch -CaseSensitive ($Operation) {
        'make-standalone' { $changed = Invoke-MakeStandalone $Arguments }
        'stop-vm' { $changed = Invoke-StopVm $Arguments }
        'configure-vm' { $changed = Invoke-ConfigureVm $Arguments }
        'disable' { $changed = Invoke-Disable $Arguments }
        'dismount' { $changed = Invoke-Dismount $Arguments }
        'attach' { $changed = Invoke-Attach $Arguments }
        'start-vm' { $changed = Invoke-StartVm $Arguments }
        'detach' { $changed = Invoke-Detach $Arguments }
        'detach-stale' { $changed = Invoke-DetachStale $Arguments }
        'mount' { $changed = Invoke-Mount $Arguments }
        'enable' { $changed = Invoke-Enable $Arguments }
        default { Stop-Request 'Invalid' 'unknown operation' }
    }
    $result = [ordered]@{ changed = $changed }
    foreach ($name in @($script:Extra.Keys)) { $result[$name] = $script:Extra[$name] }
    $result.seen = Get-Seen $Arguments
    return $result
}

function Invoke-Operation([string] $Operation, $Arguments) {
    if ($Operation -cne 'hello' -and $script:Missing.Count -gt 0) {
        Stop-Request 'Refused' ('this host lacks ' + [string]::Join(', ', $script:Missing))
    }
    switch -CaseSensitive ($Operation) {
        'hello' { return Invoke-Hello $Arguments }
        'observe' { return Invoke-Observe $Arguments }
        'survey' { return Invoke-Survey $Arguments }
        'ask-windows-guest' { return Invoke-AskWindowsGuest $Arguments }
        'install-in-windows-guest' { return Invoke-InstallInWindowsGuest $Arguments }
        'guest-addresses' { return Invoke-GuestAddresses $Arguments }
        default { return Invoke-Step $Operation $Arguments }
    }
}

# One request, one answer, whatever happens.
function Get-Answer([string] $Line) {
    $answer = [ordered]@{ id = $null; ok = $false }
    $arguments = $null
    $operation = ''
    $begun = [datetime]::Now
    $script:Extra = [ordered]@{}
    try {
        if ($Line.Length -gt 65536) { Stop-Request 'Invalid' 'the request is too long' }
        try {
            $request = ConvertFrom-Json -InputObject $Line
        } catch {
            Stop-Request 'Invalid' 'the request is no JSON'
        }
        if ($request -isnot [System.Management.Automation.PSCustomObject]) {
            Stop-Request 'Invalid' 'the request is no JSON object'
        }
        $id = Get-Field $request 'id'
        if ($id -is [string]) { Stop-Request 'Invalid' 'id must be a whole number' }
        $answer.id = Get-CountArgument $request 'id' 0 9007199254740991
        Confirm-Arguments $request @('id', 'op', 'args')
        $operation = Get-Field $request 'op'
        if ($operation -isnot [string]) { Stop-Request 'Invalid' 'op must be text' }
        $arguments = Get-Field $request 'args'
        if ($arguments -isnot [System.Management.Automation.PSCustomObject]) {
            $arguments = $null
            Stop-Request 'Invalid' 'args must be an object'
        }
        # Whatever a cmdlet puts out besides its work is not the answer.
        $results = @(Invoke-Operation $operation $arguments 3>$null 4>$null 5>$null 6>$null |
                Where-Object { $_ -is [System.Collections.IDictionary] })
        if ($results.Count -ne 1) { throw 'the operation has no single result' }
        $answer.ok = $true
        $answer.result = $results[0]
    } catch {
        $answer.error = ConvertTo-Failure $_
        if ($answer.error.kind -ceq 'Invalid' -or $null -eq $arguments) { return $answer }
        foreach ($name in @($script:Extra.Keys)) { $answer.error[$name] = $script:Extra[$name] }
        # What a failed step left behind, if it can be seen.
        $answer.error.seen = $null
        try {
            $answer.error.seen = Get-Seen $arguments
            if ($operation -ceq 'start-vm') {
                $answer.error.events = Get-StartEvent (Confirm-VmId (Get-Field $arguments 'vm')) $begun
            }
        } catch {
            $answer.error.unseen = $_.Exception.Message
        }
    }
    return $answer
}

# Streams of our own: UTF-8 whatever the code page. What anybody else writes to the console goes nowhere.
$utf8 = New-Object System.Text.UTF8Encoding $false
$requests = New-Object System.IO.StreamReader ([Console]::OpenStandardInput()), $utf8
$answers = New-Object System.IO.StreamWriter ([Console]::OpenStandardOutput()), $utf8
[Console]::SetOut([System.IO.TextWriter]::Null)

while ($true) {
    $line = $requests.ReadLine()
    if ($null -eq $line) { break }
    if ($line.Trim() -ceq '') { continue }
    $text = New-Object System.Text.StringBuilder
    Add-Json $text (Get-Answer $line)
    $answers.Write($text.Append("`n").ToString())
    $answers.Flush()
}
