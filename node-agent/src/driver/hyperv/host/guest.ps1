# What a guest itself says.
# Must never change anything, and must never tell a credential.

# The most that is taken from one guest, which says what it likes: devices, and letters of a text.
$script:GuestDevices = 256
$script:GuestText = 400

function Get-Short($Value) {
    $text = Get-Text $Value
    if ($null -ne $text -and $text.Length -gt $script:GuestText) { return $text.Substring(0, $script:GuestText) }
    return $text
}

# Made by the agent's own account with Export-Clixml, which encrypts it for that account on this machine.
function Get-GuestCredential($File) {
    $credential = Import-Clixml -LiteralPath (Confirm-File $File) -ErrorAction Stop
    if ($credential -isnot [System.Management.Automation.PSCredential]) {
        Stop-Request 'Invalid' 'the credential file holds no credential'
    }
    return $credential
}

# The PCI devices that a Windows guest sees, by PowerShell Direct: no network is needed. Addresses in the guest have
# nothing to do with the host's; whoever reads this matches by vendor, device and count.
function Invoke-AskWindowsGuest($Arguments) {
    Confirm-Arguments $Arguments @('vm', 'credential_file')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $file = Confirm-File (Get-Field $Arguments 'credential_file')
    $vm = Get-VmById $id
    if ([string](Get-Field $vm 'State') -cne 'Running') { Stop-Request 'Refused' 'the VM is not running' }
    $credential = Get-GuestCredential $file
    $answers = @(Invoke-Command -VMId (Confirm-VmId ([string]$id)) -Credential $credential -ErrorAction Stop -ScriptBlock {
            foreach ($device in @(Get-PnpDevice -PresentOnly -ErrorAction Stop)) {
                if ($device.InstanceId -like 'PCI\*') {
                    @{
                        id = [string]$device.InstanceId
                        name = [string]$device.FriendlyName
                        status = [string]$device.Status
                        problem = $device.ConfigManagerErrorCode
                    }
                }
            }
        } | Select-Object -First $script:GuestDevices)
    $devices = @()
    foreach ($answer in $answers) {
        if ($answer -isnot [System.Collections.IDictionary]) { continue }
        $problem = $answer['problem']
        # Enums come over as text or number.
        if ($problem -is [enum]) { $problem = $problem.ToString('d') }
        $number = Get-Problem $problem
        if ($null -eq $number) { $number = Get-Problem ([string]$problem) }
        $devices += [ordered]@{
            instance_id = Get-Short $answer['id']
            name = Get-Short $answer['name']
            status = Get-Short $answer['status']
            problem = $number
        }
    }
    [ordered]@{ devices = $devices }
}

# How much is kept of what a command in a guest says, in letters: the last of it.
$script:GuestOutput = 8192

# Takes in something that came back from a command in a guest: its begin, its end, or a line that it said.
function Add-Heard($Heard, $Item) {
    if ($Item -is [System.Collections.IDictionary] -and $Item['berth'] -ceq 'begins') {
        $Heard.begun = $true
    } elseif ($Item -is [System.Collections.IDictionary] -and $Item['berth'] -ceq 'ended') {
        $Heard.ended = $true
        $Heard.code = Get-Number $Item['code']
    } elseif ($Heard.begun) {
        $said = $Heard.said + [string]$Item + "`n"
        if ($said.Length -gt $script:GuestOutput) { $said = $said.Substring($said.Length - $script:GuestOutput) }
        $Heard.said = $said
    }
}

# Runs one program in a Windows guest, by PowerShell Direct. No script is made of what is asked for: program and words go over
# as arguments of a block that never changes. It is begun in the background, so that what it has said is known at its deadline.
# An error means that it was surely not begun. What has begun goes on in the guest, whatever becomes of this.
function Invoke-InstallInWindowsGuest($Arguments) {
    Confirm-Arguments $Arguments @('vm', 'credential_file', 'program', 'words', 'limit_ms')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $file = Confirm-File (Get-Field $Arguments 'credential_file')
    $program = Confirm-Word (Get-Field $Arguments 'program')
    $given = Get-Field $Arguments 'words'
    $words = @()
    foreach ($word in @($given)) { $words += Confirm-Word $word }
    $limit = Get-CountArgument $Arguments 'limit_ms' 1 3600000
    $vm = Get-VmById $id
    if ([string](Get-Field $vm 'State') -cne 'Running') { Stop-Request 'Refused' 'the VM is not running' }
    $credential = Get-GuestCredential $file
    $heard = @{ begun = $false; ended = $false; code = $null; said = '' }
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    $job = Invoke-Command -VMId (Confirm-VmId ([string]$id)) -Credential $credential -AsJob -ErrorAction Stop `
        -ArgumentList $program, $words -ScriptBlock {
            param([string] $exe, [string[]] $arguments)
            $ErrorActionPreference = 'Continue'
            @{ berth = 'begins' }
            # A shell's code for what it cannot start.
            $code = 127
            try {
                # In a pipeline a program with a window is waited for, too.
                & $exe @arguments 2>&1 | Where-Object { $null -ne $_ }
                $code = $LASTEXITCODE
            } catch {
                [string]$_
            }
            @{ berth = 'ended'; code = $code }
        }
    do {
        # Asked before: whatever it said until it was over is there then.
        $over = @('Running', 'NotStarted') -cnotcontains [string](Get-Field $job 'State')
        try {
            $null = Receive-Job -Job (Confirm-GuestJob $job) -ErrorAction Stop | Where-Object { Add-Heard $heard $_ }
        } catch {
            # A way in that was none, or that broke in the middle.
            if (-not $heard.begun) { throw }
            $over = $true
        }
    } while (-not $heard.ended -and -not $over -and (Test-Time $clock $limit))
    if ($over -and -not $heard.begun) { Stop-Request 'Unconfirmed' 'the guest did not begin the command, and does not say why' }
    [ordered]@{ ended = $heard.ended; code = $heard.code; late = -not $over -and -not $heard.ended; said = $heard.said }
}

# Where a guest can be reached over the network, for the agent's own ssh to a Linux guest.
function Invoke-GuestAddresses($Arguments) {
    Confirm-Arguments $Arguments @('vm')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $vm = Get-VmById $id
    $addresses = @()
    foreach ($adapter in @(Get-VMNetworkAdapter -VM (Confirm-Vm $vm $id) -ErrorAction Stop)) {
        $given = Get-Field $adapter 'IPAddresses'
        foreach ($address in @($given)) { if ($null -ne (Get-Text $address)) { $addresses += [string]$address } }
    }
    [ordered]@{ addresses = $addresses }
}

# Why a VM did not start stands in the worker's log; the VM's id in an entry is the one thing in it that no language
# changes. Only for people, so whatever goes wrong here is left out.
function Get-StartEvent([guid] $Id, [datetime] $Since) {
    $texts = @()
    try {
        $filter = @{ LogName = 'Microsoft-Windows-Hyper-V-Worker-Admin'; StartTime = $Since }
        foreach ($entry in @(Get-WinEvent -FilterHashtable $filter -MaxEvents 20 -ErrorAction Stop)) {
            $text = [string](Get-Field $entry 'Message')
            if ($text.IndexOf([string]$Id, [System.StringComparison]::OrdinalIgnoreCase) -ge 0) { $texts += $text }
        }
    } catch {
        return , $texts
    }
    return , $texts
}
