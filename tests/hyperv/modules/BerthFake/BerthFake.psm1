# What the fake modules beside this one share: the host's state, faults, habits, errors in two languages.
#
# The state is one JSON file, named by BERTH_FAKE_HYPERV, read and written by every call: it outlives the process, as a
# host outlives PowerShell. Calls are written down in FILE.calls, one JSON object a line, before they have any effect.
# For PowerShell 7 only; what ships runs in 5.1 and is not here.

Set-StrictMode -Version 3.0

function Get-FakeState {
    $text = [System.IO.File]::ReadAllText($env:BERTH_FAKE_HYPERV)
    ConvertFrom-Json -InputObject $text -AsHashtable
}

function Save-FakeState($State) {
    # At once or not at all: the process may be killed here.
    $new = $env:BERTH_FAKE_HYPERV + '.new'
    [System.IO.File]::WriteAllText($new, (ConvertTo-Json -InputObject $State -Depth 20))
    [System.IO.File]::Move($new, $env:BERTH_FAKE_HYPERV, $true)
}

function Write-FakeCall($Entry) {
    [System.IO.File]::AppendAllText($env:BERTH_FAKE_HYPERV + '.calls', (ConvertTo-Json -InputObject $Entry -Compress -Depth 5) + "`n")
}

function Test-Habit($State, [string] $Name) { $State.habits -contains $Name }

# Texts as the reference quotes them, and as a German host would say it.
$script:Texts = @{
    en = @{
        vm = 'Hyper-V was unable to find a virtual machine with id "{0}".'
        state = 'The operation cannot be performed while the virtual machine is in its current state.'
        mitigation = 'The operation failed. The manufacturer of this device has not supplied any directives for securing this device while exposing it to a virtual machine. The device should only be exposed to trusted virtual machines. This device is not supported when passed through to a virtual machine.'
        firmware = 'The operation failed. The current configuration does not allow for OS control of the PCI Express bus. Please check your BIOS or UEFI settings.'
        device = "The specified device '{0}' was not found on server '{1}'."
        path = 'The parameter is not valid. Specify an instance path, a location path or a resource pool.'
        assigned = 'The device is already assigned to this virtual machine.'
        start = "'{0}' failed to start. (Virtual machine ID {1}) Virtual Pci Express Port: {2}"
        pnp = 'No matching Win32_PnPEntity objects found by CIM query.'
        fault = '{0}: the operation failed.'
        clustered = 'A device of the virtual machine does not support high availability.'
        direct = "An error occurred that Windows PowerShell can't handle. A remote session might have ended."
        credential = 'The credential is invalid.'
        group = 'The cluster group could not be found.'
        feature = "Failed to Power on with Error 'A hypervisor feature is not available to the user'. (0xC035001E)."
        gone = 'Element not found. (0x80070490)'
        room = 'Insufficient system resources exist to complete the requested service. (0x800705AA)'
        taken = 'The device is in use.'
        dynamic = 'Dynamic memory and an assigned device exclude each other.'
        save = 'An assigned device excludes saving the state.'
    }
    de = @{
        vm = 'Hyper-V konnte keinen virtuellen Computer mit der ID "{0}" finden.'
        state = 'Der Vorgang kann nicht ausgeführt werden, solange sich der virtuelle Computer im aktuellen Zustand befindet.'
        mitigation = 'Fehler beim Vorgang. Der Hersteller dieses Geräts hat keine Anweisungen zum Schützen des Geräts bereitgestellt.'
        firmware = 'Fehler beim Vorgang. Die aktuelle Konfiguration lässt keine Steuerung des PCI-Express-Busses durch das Betriebssystem zu.'
        device = 'Das angegebene Gerät "{0}" wurde auf dem Server "{1}" nicht gefunden.'
        path = 'Der Parameter ist ungültig.'
        assigned = 'Das Gerät ist diesem virtuellen Computer bereits zugewiesen.'
        start = 'Fehler beim Starten von "{0}". (ID des virtuellen Computers: {1}) Virtueller PCI-Express-Anschluss: {2}'
        pnp = 'Durch die CIM-Abfrage wurden keine passenden Win32_PnPEntity-Objekte gefunden.'
        fault = '{0}: Fehler beim Vorgang.'
        clustered = 'Ein Gerät des virtuellen Computers unterstützt keine Hochverfügbarkeit.'
        direct = 'Ein Fehler ist aufgetreten. Möglicherweise wurde eine Remotesitzung beendet.'
        credential = 'Die Anmeldeinformationen sind ungültig.'
        group = 'Die Clustergruppe wurde nicht gefunden.'
        feature = 'Ein Hypervisorfeature ist für den Benutzer nicht verfügbar. (0xC035001E)'
        gone = 'Element nicht gefunden. (0x80070490)'
        room = 'Nicht genügend Systemressourcen, um den angeforderten Dienst auszuführen. (0x800705AA)'
        taken = 'Das Gerät wird gerade verwendet.'
        dynamic = 'Dynamischer Arbeitsspeicher und ein zugewiesenes Gerät schließen einander aus.'
        save = 'Mit einem zugewiesenen Gerät kann der Zustand nicht gespeichert werden.'
    }
}

function Get-FakeText($State, [string] $Key, [object[]] $Values = @()) {
    $script:Texts[$State.language][$Key] -f $Values
}

# An error as a cmdlet throws it: the id carries the cmdlet's class, and the number sits in the inner exception.
function New-FakeError([string] $Command, [string] $Text, [string] $Id, [string] $Category, [int] $HResult) {
    $inner = [System.Runtime.InteropServices.COMException]::new($Text, $HResult)
    $exception = [System.Exception]::new($Text, $inner)
    $class = $Command.Replace('-', '')
    $record = [System.Management.Automation.ErrorRecord]::new($exception, "$Id,Microsoft.HyperV.PowerShell.Commands.$class", $Category, $null)
    $record.CategoryInfo.Activity = $Command
    $record
}

# Waits for ever. Says so first, so that a test knows when to pull the plug.
function Wait-FakeForever([string] $Command) {
    Write-FakeCall @{ hangs = $Command }
    while ($true) { Start-Sleep -Seconds 60 }
}

# Begins a call: writes it down, and takes the first fault that is meant for it.
function Start-FakeCall([string] $Command, $Bound) {
    $state = Get-FakeState
    $given = [ordered]@{}
    foreach ($name in $Bound.Keys) {
        $value = $Bound[$name]
        $given[$name] = if ($value -is [string] -or $value -is [guid] -or $value -is [switch] -or $value -is [enum]) {
            [string]$value
        } elseif ($value -is [valuetype]) { $value } else { '...' }
    }
    Write-FakeCall @{ command = $Command; given = $given }
    if (Test-Habit $state 'noisy') {
        Write-Host 'noise from a host'
        Write-Warning 'noise from a warning'
        Write-Information 'noise from information' -InformationAction Continue
        Write-Verbose 'noise from verbose' -Verbose
        Write-Progress -Activity 'noise from progress'
        [Console]::WriteLine('noise from the console')
    }
    $fault = $null
    $left = @()
    $changed = $false
    foreach ($candidate in $state.faults) {
        if ($null -eq $fault -and $candidate.on -eq $Command) {
            $changed = $true
            if ($candidate['skip'] -gt 0) {
                $candidate.skip--
                $left += $candidate
                # Whatever stands behind it waits, too.
                $fault = 'none'
            } else {
                $fault = $candidate
            }
        } else {
            $left += $candidate
        }
    }
    if ($fault -is [string]) { $fault = $null }
    if ($changed) {
        $state.faults = $left
        Save-FakeState $state
    }
    @{ Command = $Command; State = $state; Fault = $fault }
}

function Stop-FakeCall($Call) {
    $text = $Call.Fault['text']
    if (-not $text) { $text = Get-FakeText $Call.State 'fault' @($Call.Command) }
    throw (New-FakeError $Call.Command $text 'OperationFailed' 'NotSpecified' -2147467259)
}

# What goes wrong before a call has its effect; true when it has none at all.
function Test-FakeEnd($Call) {
    if ($null -eq $Call.Fault) { return $false }
    switch ($Call.Fault.kind) {
        'Fails' { Stop-FakeCall $Call }
        'NoEffect' { return $true }
        'Hangs' { if (-not $Call.Fault['effect']) { Wait-FakeForever $Call.Command } }
    }
    return $false
}

# What goes wrong after it.
function Complete-FakeCall($Call) {
    Save-FakeState $Call.State
    if ($null -eq $Call.Fault) { return }
    switch ($Call.Fault.kind) {
        'HalfDone' { Stop-FakeCall $Call }
        'Hangs' { Wait-FakeForever $Call.Command }
    }
}

# What goes wrong with reading, besides failing and hanging: one fault for all that one look asks.
function Get-LookFault($State) { if ($null -eq $State.look_fault) { '' } else { $State.look_fault } }

# Functions that are in their slots, less those that a faulty look does not show.
function Get-FakeFunction($State) {
    $all = @($State.functions | Where-Object { $_.in_slot })
    $gpu = { $_.properties['BaseClass'] -in 3, 18 }
    switch -Regex (Get-LookFault $State) {
        '^NoGpus$' {
            # Nothing of their cards, either.
            $cards = @($all | Where-Object $gpu | ForEach-Object { $_.path.Substring(0, $_.path.Length - 3) })
            return @($all | Where-Object { $_.path.Substring(0, $_.path.Length - 3) -notin $cards })
        }
        '^NoDevices$' { return @() }
        '^LacksOne$' {
            $gpus = @($all | Where-Object $gpu)
            $lacking = $gpus[$State.look_lacks % $gpus.Count]
            return @($all | Where-Object { $_.path -ne $lacking.path })
        }
    }
    $all
}

function Get-FakeVm($State) {
    if ((Get-LookFault $State) -eq 'NoVms') { return @() }
    if ((Get-LookFault $State) -eq 'RecordOfUnlisted') { return @($State.vms | Where-Object { -not $_['unlisted'] }) }
    $State.vms
}

# Whether a record of a VM names a card that is there.
function Test-FakeLive($State, $Record) {
    @($State.functions | Where-Object { $_.in_slot -and $_.path -ceq $Record.path -and $_.tail -eq $Record.tail }).Count -gt 0
}

# A credential as Import-Clixml gives it back. The file of a test holds user and password as JSON.
function Import-Clixml {
    [CmdletBinding()]
    param([Parameter(Mandatory)] [string[]] $LiteralPath)
    $null = Start-FakeCall 'Import-Clixml' $PSBoundParameters
    $kept = ConvertFrom-Json -InputObject ([System.IO.File]::ReadAllText($LiteralPath[0])) -AsHashtable
    if (-not $kept.ContainsKey('user')) { return [pscustomobject]$kept }
    $secret = [securestring]::new()
    foreach ($char in $kept.password.ToCharArray()) { $secret.AppendChar($char) }
    [pscredential]::new($kept.user, $secret)
}

# Entries of event logs, newest first.
function Get-WinEvent {
    [CmdletBinding()]
    param([Parameter(Mandatory)] [hashtable[]] $FilterHashtable, [long] $MaxEvents)
    $call = Start-FakeCall 'Get-WinEvent' $PSBoundParameters
    foreach ($text in $call.State.events) { [pscustomobject]@{ Message = $text; Id = 12030 } }
}

Export-ModuleMember -Function *
