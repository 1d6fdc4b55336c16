# Arguments of a request, and what a cmdlet may be given. The agent has checked them, too; this is the second lock,
# because two cmdlets take "nothing" for "everything" and one takes any device it likes.
#
# Every Confirm function gives back what it was given or ends the request. A test makes sure that no cmdlet which acts
# is called without its Confirm.

# \z and not $, which lets a line's end pass.
$script:PathForm = '^PCIROOT\([0-9A-F]{1,4}\)(#PCI\([0-9A-F]{4}\)){1,32}\z'
$script:InstanceForm = '^PCIP?\\VEN_[0-9A-F]{4}&DEV_[0-9A-F]{4}[0-9A-Za-z_&.\-]*\\[0-9A-Za-z_&.\-]+\z'
$script:WholePath = '^/'
if ([System.IO.Path]::DirectorySeparatorChar -eq '\') { $script:WholePath = '^[A-Za-z]:[\\/]' }
$script:GuidForm = '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\z'

# A property that this build may not have.
function Get-Field($From, [string] $Name) {
    if ($null -eq $From) { return $null }
    $property = $From.PSObject.Properties[$Name]
    if ($null -eq $property) { return $null }
    # The comma keeps arrays whole, empty ones too.
    return , $property.Value
}

# Text, or nothing for nothing: cmdlets give an empty text for "none" as often as null.
function Get-Text($Value) {
    if ($null -eq $Value) { return $null }
    $text = [string]$Value
    if ($text -ceq '') { return $null }
    return $text
}

# A whole number of any type, or nothing.
function Get-Number($Value) {
    if ($null -eq $Value -or $Value -is [bool]) { return $null }
    $number = [decimal]0
    $style = [System.Globalization.NumberStyles]::AllowLeadingSign
    if ($Value -is [enum]) { $Value = $Value.ToString('d') }
    if (-not [decimal]::TryParse([string]$Value, $style, [cultureinfo]::InvariantCulture, [ref]$number)) { return $null }
    if ($number -ge 0 -and $number -le [uint64]::MaxValue) { return [uint64]$number }
    if ($number -lt 0 -and $number -ge [long]::MinValue) { return [long]$number }
    return $null
}

function Get-Flag($Value) {
    if ($Value -is [bool]) { return $Value }
    return $null
}

function Confirm-LocationPath($Path) {
    if ($Path -isnot [string] -or $Path.Length -gt 336 -or $Path -cnotmatch $script:PathForm) {
        Stop-Request 'Invalid' 'location_path is not of the form PCIROOT(0)#PCI(0300)#PCI(0000)'
    }
    return $Path
}

# The name of a pool that the host gave: never empty, which would mean every device, and no pattern.
function Confirm-PoolName($Name) {
    if ($Name -isnot [string] -or $Name.Length -eq 0 -or $Name.Length -gt 256 -or $Name -match '[\x00-\x1f*?\[\]]') {
        Stop-Request 'Refused' 'a pool of the host has a name that cannot be asked for'
    }
    return $Name
}

function Confirm-InstanceId($Id) {
    if ($Id -isnot [string] -or $Id.Length -gt 400 -or $Id -cnotmatch $script:InstanceForm) {
        Stop-Request 'Refused' 'the host gave the device an instance id of an unknown form'
    }
    return $Id
}

function Confirm-VmId($Id) {
    if ($Id -isnot [string] -or $Id -notmatch $script:GuidForm -or [guid]$Id -eq [guid]::Empty) {
        Stop-Request 'Invalid' 'vm is not a GUID other than zero'
    }
    return [guid]$Id
}

# One VM object, the one that was asked for.
function Confirm-Vm($Vm, [guid] $Id) {
    if ($null -eq $Vm -or $Vm -is [array] -or [guid](Get-Field $Vm 'Id') -ne $Id) {
        Stop-Request 'Refused' 'the host gave another VM than the one that was asked for'
    }
    return $Vm
}

# Whether a record of a VM is of the root pool. One of another pool has no device until the VM starts: it is not stale.
function Test-RootPool($Device) {
    $pool = Get-Text (Get-Field $Device 'ResourcePoolName')
    return $null -eq $pool -or $pool -ieq 'Primordial'
}

# One record of the device at exactly this path; an empty path means records whose device is gone.
function Confirm-Assigned($Device, [string] $Path) {
    if ($null -eq $Device -or $Device -is [array] -or [string](Get-Field $Device 'LocationPath') -cne $Path) {
        Stop-Request 'Refused' 'the host gave another device than the one that was asked for'
    }
    if ($Path -ceq '' -and $null -ne (Get-Text (Get-Field $Device 'InstanceID'))) {
        Stop-Request 'Refused' 'a record without a location path names a device all the same'
    }
    if (-not (Test-RootPool $Device)) {
        Stop-Request 'Refused' 'the record is of a pool of the cluster, which gives devices by itself'
    }
    return $Device
}

# A role of the cluster, one: without it, the cmdlet lists the resources of all.
function Confirm-Role($Role) {
    if ($null -eq $Role -or $Role -is [array] -or $null -eq (Get-Text (Get-Field $Role 'Name'))) {
        Stop-Request 'Refused' 'the cluster gave no role'
    }
    return $Role
}

# A file of the agent's own configuration: here, whole, and no pattern. Whole is a path that means the same wherever a process
# stands: \x and C:x, which have a root for .NET, depend on its drive and its folder.
function Confirm-File($Path) {
    if ($Path -isnot [string] -or $Path.Length -gt 260 -or $Path -match '[\x00-\x1f*?"<>|\[\]]' -or
        $Path.StartsWith('\\') -or $Path.StartsWith('//') -or $Path -notmatch $script:WholePath -or
        -not [System.IO.File]::Exists($Path)) {
        Stop-Request 'Invalid' 'the file is not there, not on this machine, or not a whole path'
    }
    return $Path
}

# A word of a command of the agent's own configuration, which it has checked: a program, or an argument of one. A quotation mark
# is not handed on as it is by Windows PowerShell.
function Confirm-Word($Word) {
    if ($Word -isnot [string] -or $Word.Length -eq 0 -or $Word.Length -gt 1024 -or $Word -match '[\x00-\x1f"]') {
        Stop-Request 'Invalid' 'a word of the command is empty, too long, or has a character that is not handed on'
    }
    return $Word
}

# The job that runs a command in a guest, one.
function Confirm-GuestJob($Job) {
    if ($null -eq $Job -or $Job -is [array]) { Stop-Request 'Unconfirmed' 'the command in the guest shows no job' }
    return $Job
}

# Arguments are taken by their exact names; what nobody knows is refused, so that a misspelt one is not left out.
function Confirm-Arguments($Arguments, [string[]] $Known) {
    foreach ($property in $Arguments.PSObject.Properties) {
        if ($Known -cnotcontains $property.Name) {
            Stop-Request 'Invalid' ('unknown argument: ' + $property.Name)
        }
    }
}

function Get-BoolArgument($Arguments, [string] $Name) {
    $value = Get-Field $Arguments $Name
    if ($value -isnot [bool]) { Stop-Request 'Invalid' ($Name + ' must be true or false') }
    return $value
}

function Get-ChoiceArgument($Arguments, [string] $Name, [string[]] $Choices) {
    $value = Get-Field $Arguments $Name
    if ($value -isnot [string] -or $Choices -cnotcontains $value) {
        Stop-Request 'Invalid' ($Name + ' must be one of ' + [string]::Join(', ', $Choices))
    }
    return $value
}

function Get-CountArgument($Arguments, [string] $Name, [uint64] $Least, [uint64] $Most) {
    $value = Get-Field $Arguments $Name
    $number = Get-Number $value
    if ($value -is [string] -or $number -isnot [uint64] -or $number -lt $Least -or $number -gt $Most) {
        Stop-Request 'Invalid' ($Name + ' must be a whole number from ' + $Least + ' to ' + $Most)
    }
    return $number
}

# How long a step looks for its effect, in milliseconds.
function Get-SettleArgument($Arguments) {
    if ($null -eq (Get-Field $Arguments 'settle_ms')) { return [uint64]10000 }
    return Get-CountArgument $Arguments 'settle_ms' 0 600000
}
