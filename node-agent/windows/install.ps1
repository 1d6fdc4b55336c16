#Requires -Version 5.1
#Requires -RunAsAdministrator
<#
.SYNOPSIS
Installs Berth's node agent on this Hyper-V host as a service, brings it up to date, or removes it.

.DESCRIPTION
Run it on the host, in a PowerShell that was opened with "Run as administrator". It copies the program, makes a folder for
configuration and data that only administrators can change, writes a configuration if there is none, installs the service
and starts it. Run again with a newer berth-agent.exe it replaces the program and starts the service again. The agent dials
out; no port is opened and no rule of the firewall is needed.

.EXAMPLE
.\install.ps1 -Controller https://berth-1:7600,https://berth-2:7600 -TlsCa ca.pem -TlsCert hv-01.pem -TlsKey hv-01.key

.EXAMPLE
.\install.ps1 -Uninstall
#>
[CmdletBinding(DefaultParameterSetName = 'Install')]
param(
    # Endpoints of the controllers. Not needed where a configuration is there already.
    [Parameter(ParameterSetName = 'Install')]
    [string[]] $Controller = @(),

    # Name of this node, as placements show it.
    [Parameter(ParameterSetName = 'Install')]
    [string] $Node = $env:COMPUTERNAME,

    # The CA of the controllers' certificates, this node's certificate and its key (PEM); they are copied.
    [Parameter(ParameterSetName = 'Install')]
    [string] $TlsCa = '',
    [Parameter(ParameterSetName = 'Install')]
    [string] $TlsCert = '',
    [Parameter(ParameterSetName = 'Install')]
    [string] $TlsKey = '',

    # Allows http:// to controllers on other machines.
    [Parameter(ParameterSetName = 'Install')]
    [switch] $Insecure,

    # Account of the service: LocalSystem, or a group managed service account as DOMAIN\NAME$.
    [Parameter(ParameterSetName = 'Install')]
    [string] $Account = 'LocalSystem',

    # The program, if it does not lie beside this script.
    [Parameter(ParameterSetName = 'Install')]
    [string] $Program = '',

    # Stops the service and removes it with its program. Configuration and data stay.
    [Parameter(ParameterSetName = 'Uninstall', Mandatory = $true)]
    [switch] $Uninstall
)

$ErrorActionPreference = 'Stop'
Set-StrictMode -Version 2.0

$service = 'berth-agent'
$programs = Join-Path -Path $env:ProgramFiles -ChildPath 'Berth'
$exe = Join-Path -Path $programs -ChildPath 'berth-agent.exe'
$settings = Join-Path -Path $env:ProgramData -ChildPath 'Berth'
$config = Join-Path -Path $settings -ChildPath 'agent.toml'
$data = Join-Path -Path $settings -ChildPath 'agent'

function Test-Installed {
    @(Get-Service -ErrorAction Stop | Where-Object { $_.Name -ceq $service }).Count -ne 0
}

# Runs what has told why, if it failed.
function Confirm-Success([string] $What) {
    if ($LASTEXITCODE -ne 0) {
        throw "$What failed; see above."
    }
}

# SYSTEM, Administrators, the service that Windows installs itself with.
$trusted = @(
    'S-1-5-18'
    'S-1-5-32-544'
    'S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464'
)

# Rights by which a folder, or what is in it, can be changed: write, append, extended attributes, delete a child, attributes,
# delete, write the list, take it over, and the generic and greatest ones. As the agent itself looks at it.
$changes = 0x520D0156

function Get-AccountId {
    $name = New-Object System.Security.Principal.NTAccount $Account
    return $name.Translate([System.Security.Principal.SecurityIdentifier]).Value
}

# Whoever can change what is in this folder can do anything on this host: the agent obeys and runs what it finds there.
function Confirm-Guarded([string] $Path) {
    $known = $trusted
    if ($Account -cne 'LocalSystem') {
        $known += Get-AccountId
    }
    # A link leads to where somebody else may decide.
    if (([System.IO.File]::GetAttributes($Path) -band [System.IO.FileAttributes]::ReparsePoint) -ne 0) {
        throw "$Path is a link. Look at what it leads to, move it away, and run this again."
    }
    $rights = Get-Acl -LiteralPath $Path -ErrorAction Stop
    $others = @()
    # An owner can write the list at any time.
    $owner = $rights.GetOwner([System.Security.Principal.SecurityIdentifier]).Value
    if ($known -cnotcontains $owner) {
        $others += $owner
    }
    foreach ($rule in $rights.GetAccessRules($true, $true, [System.Security.Principal.SecurityIdentifier])) {
        $who = $rule.IdentityReference.Value
        if ([string]$rule.AccessControlType -ceq 'Allow' -and ([int]$rule.FileSystemRights -band $changes) -ne 0 -and
            $known -cnotcontains $who) {
            $others += $who
        }
    }
    if ($others.Count -ne 0) {
        throw ("$Path can be changed by " + ($others -join ', ') + '; only administrators and SYSTEM may. Somebody else may ' +
            'have put there what is in it. Look at it, move it away, and run this again.')
    }
}

# A folder that SYSTEM and administrators can change, and the account as the text of rights says. One that others could
# write to until now may hold anything: it is left as it is, and nothing is installed.
function New-GuardedFolder([string] $Path, [string] $AccountRights) {
    if (-not (Test-Path -LiteralPath $Path)) {
        $null = New-Item -ItemType Directory -Path $Path -ErrorAction Stop
    }
    if (@(Get-ChildItem -LiteralPath $Path -Force -ErrorAction Stop).Count -eq 0) {
        $list = 'O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)'
        if ($Account -cne 'LocalSystem') {
            $list += '(A;OICI;' + $AccountRights + ';;;' + (Get-AccountId) + ')'
        }
        $rights = Get-Acl -LiteralPath $Path -ErrorAction Stop
        $rights.SetSecurityDescriptorSddlForm($list)
        Set-Acl -LiteralPath $Path -AclObject $rights -ErrorAction Stop
        # Until now others may have been quicker; from now on they cannot.
        if (@(Get-ChildItem -LiteralPath $Path -Force -ErrorAction Stop).Count -ne 0) {
            throw "Somebody put something into $Path while it was made. Look at it, move it away, and run this again."
        }
    }
    Confirm-Guarded $Path
}

# A text between single quotes of TOML, which takes everything but those.
function ConvertTo-Literal([string] $Text) {
    if ($Text -match "['\x00-\x1f\x7f]") {
        throw "this cannot stand in the configuration: $Text"
    }
    "'" + $Text + "'"
}

# Copies a file of TLS beside the configuration; its name there, as the configuration names it.
function Copy-Beside([string] $Path, [string] $Name) {
    Copy-Item -LiteralPath $Path -Destination (Join-Path -Path $settings -ChildPath $Name) -Force -ErrorAction Stop
    ConvertTo-Literal $Name
}

function Write-Configuration {
    if ($Controller.Count -eq 0) {
        throw 'There is no configuration yet: name the controllers with -Controller https://HOST:PORT.'
    }
    $given = @($TlsCa, $TlsCert, $TlsKey | Where-Object { $_ -cne '' })
    if ($given.Count -ne 0 -and $given.Count -ne 3) {
        throw 'TLS needs all of -TlsCa, -TlsCert and -TlsKey.'
    }
    $endpoints = @()
    # With powershell -File a list arrives as one text.
    foreach ($endpoint in ($Controller -split ',')) {
        $endpoints += ConvertTo-Literal $endpoint.Trim()
    }
    $lines = @(
        '# Written by install.ps1 once; change it as you like, then: Restart-Service berth-agent'
        'node = ' + (ConvertTo-Literal $Node)
        'controllers = [' + ($endpoints -join ', ') + ']'
        'driver = ''hyperv'''
        'data_dir = ' + (ConvertTo-Literal $data)
    )
    if ($Insecure) {
        $lines += 'insecure = true'
    }
    if ($given.Count -eq 3) {
        $lines += ''
        $lines += '[tls]'
        $lines += 'ca = ' + (Copy-Beside $TlsCa 'ca.pem')
        $lines += 'cert = ' + (Copy-Beside $TlsCert 'node.pem')
        $lines += 'key = ' + (Copy-Beside $TlsKey 'node.key')
    }
    # Without a byte order mark, which TOML does not know.
    $plain = New-Object System.Text.UTF8Encoding $false
    [System.IO.File]::WriteAllText($config, ($lines -join "`n") + "`n", $plain)
    Write-Output "Wrote $config."
}

function Install-Agent {
    if ($Program -ceq '') {
        $Program = Join-Path -Path $PSScriptRoot -ChildPath 'berth-agent.exe'
    }
    if (-not (Test-Path -LiteralPath $Program -PathType Leaf)) {
        throw "There is no program $Program; name it with -Program."
    }
    if (Test-Installed) {
        Stop-Service -Name $service -ErrorAction Stop
    }
    $null = New-Item -ItemType Directory -Path $programs -Force -ErrorAction Stop
    Copy-Item -LiteralPath $Program -Destination $exe -Force -ErrorAction Stop
    New-GuardedFolder $settings '0x1200a9'
    New-GuardedFolder $data 'FA'
    if (-not (Test-Path -LiteralPath $config)) {
        Write-Configuration
    }
    & $exe --config $config --check-config
    Confirm-Success "Checking $config"
    if (-not (Test-Installed)) {
        & $exe service install --config $config --account $Account
        Confirm-Success 'Installing the service'
    }
    Start-Service -Name $service -ErrorAction Stop
    Write-Output 'The agent runs. What it says is in the event log Application, source berth-agent.'
}

function Uninstall-Agent {
    if (Test-Installed) {
        & $exe service uninstall
        Confirm-Success 'Removing the service'
    }
    if (Test-Path -LiteralPath $exe) {
        Remove-Item -LiteralPath $exe -Force -ErrorAction Stop
    }
    # It knows what virtual machines looked like before Berth changed them.
    Write-Output "Configuration and data stay in $settings. Remove them only once no placement is left on this host."
}

if ($Uninstall) {
    Uninstall-Agent
} else {
    Install-Agent
}
