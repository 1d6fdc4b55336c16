# The script that Berth's agent runs in one long-lived Windows PowerShell 5.1, put together from the files beside this
# one. What it is for, how it is started and what its lines look like stands in ../README.md.
#
# This part: settings that hold for everything, JSON out, and errors.
# Must never put anything on standard output but an answer. Must stay ASCII: 5.1 reads a file without BOM as ANSI.

Set-StrictMode -Version 2.0

# Global, because functions of modules (all of PnpDevice) see the global ones and not this script's.
$global:ErrorActionPreference = 'Stop'
$global:ProgressPreference = 'SilentlyContinue'
$global:WarningPreference = 'SilentlyContinue'
$global:VerbosePreference = 'SilentlyContinue'
$global:DebugPreference = 'SilentlyContinue'
$global:InformationPreference = 'SilentlyContinue'
# Nobody is there to be asked.
$global:ConfirmPreference = 'None'

# Own code instead of ConvertTo-Json: that one takes arrays of one element apart, loses empty ones, gives dates and
# enums another form in every version, cuts at a depth, and in 5.1 wraps some arrays in an object. Output is ASCII, so
# that no code page can spoil it.
function Add-JsonString([System.Text.StringBuilder] $Text, [string] $Value) {
    [void]$Text.Append('"')
    if ($Value -cmatch '^[ !#-\[\]-~]*\z') {
        [void]$Text.Append($Value)
    } else {
        foreach ($char in $Value.ToCharArray()) {
            $code = [int]$char
            if ($code -eq 34 -or $code -eq 92) {
                [void]$Text.Append('\').Append($char)
            } elseif ($code -ge 32 -and $code -lt 127) {
                [void]$Text.Append($char)
            } else {
                [void]$Text.Append('\u').Append($code.ToString('x4'))
            }
        }
    }
    [void]$Text.Append('"')
}

function Add-Json([System.Text.StringBuilder] $Text, $Value) {
    if ($null -eq $Value) {
        [void]$Text.Append('null')
    } elseif ($Value -is [string]) {
        Add-JsonString $Text $Value
    } elseif ($Value -is [bool]) {
        [void]$Text.Append($Value.ToString().ToLowerInvariant())
    } elseif ($Value -is [enum]) {
        Add-JsonString $Text $Value.ToString()
    } elseif ($Value -is [int] -or $Value -is [long] -or $Value -is [uint32] -or $Value -is [uint64] -or
        $Value -is [int16] -or $Value -is [uint16] -or $Value -is [byte]) {
        [void]$Text.Append($Value.ToString([cultureinfo]::InvariantCulture))
    } elseif ($Value -is [System.Collections.IDictionary]) {
        [void]$Text.Append('{')
        $first = $true
        foreach ($key in @($Value.Keys)) {
            if (-not $first) { [void]$Text.Append(',') }
            $first = $false
            Add-JsonString $Text ([string]$key)
            [void]$Text.Append(':')
            Add-Json $Text $Value[$key]
        }
        [void]$Text.Append('}')
    } elseif ($Value -is [System.Collections.IEnumerable]) {
        [void]$Text.Append('[')
        $first = $true
        foreach ($item in $Value) {
            if (-not $first) { [void]$Text.Append(',') }
            $first = $false
            Add-Json $Text $item
        }
        [void]$Text.Append(']')
    } else {
        Add-JsonString $Text ([string]$Value)
    }
}

# Ends the request: of the script's own accord, not because a cmdlet failed. Kinds:
#   Invalid      the request itself is wrong; nothing was touched
#   NotThere     what it names is not there; nothing was touched
#   Refused      the step would do harm as things are; nothing was touched
#   Unconfirmed  the cmdlet reported success and the effect did not show in time
$script:KindCategories = @{
    Invalid = 'InvalidArgument'; NotThere = 'ObjectNotFound'; Refused = 'InvalidOperation'; Unconfirmed = 'OperationTimeout'
}

function Stop-Request([string] $Kind, [string] $Message) {
    $exception = New-Object System.InvalidOperationException $Message
    $exception.Data['berth'] = $Kind
    $fqid = 'Berth.' + $Kind
    throw New-Object System.Management.Automation.ErrorRecord $exception, $fqid, $script:KindCategories[$Kind], $null
}

# Texts are localised, so whoever reads an answer decides by kind, category, id and numbers; the text is for people.
# Codes are the numbers that stand in the text itself: why a VM did not start stands nowhere else.
function ConvertTo-Failure([System.Management.Automation.ErrorRecord] $Record) {
    $kind = $Record.Exception.Data['berth']
    $cmdlet = $null
    if ($null -eq $kind) {
        $kind = 'Failed'
        $cmdlet = Get-Text $Record.CategoryInfo.Activity
    }
    $text = $Record.Exception.Message
    $hresult = $null
    $exception = $Record.Exception
    while ($null -ne $exception) {
        # What the runtime itself gives to exceptions nobody gave a number tells nothing.
        if ($null -eq $hresult -and $exception.HResult -ne 0 -and $exception.HResult -ne -2146233088 -and
            $exception.HResult -ne -2146233087 -and $exception.HResult -ne -2146233079) {
            $hresult = $exception.HResult
        }
        $exception = $exception.InnerException
    }
    $codes = @()
    foreach ($match in [regex]::Matches($text, '0x[0-9A-Fa-f]{8}')) { $codes += $match.Value.ToUpperInvariant().Replace('0X', '0x') }
    [ordered]@{
        kind = $kind
        category = $Record.CategoryInfo.Category.ToString()
        fqid = $Record.FullyQualifiedErrorId
        hresult = $hresult
        codes = $codes
        message = $text
        cmdlet = $cmdlet
    }
}
