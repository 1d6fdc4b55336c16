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

# The PCI devices that a Windows guest sees, by PowerShell Direct: no network is needed. Addresses in the guest have
# nothing to do with the host's; whoever reads this matches by vendor, device and count.
function Invoke-AskWindowsGuest($Arguments) {
    Confirm-Arguments $Arguments @('vm', 'credential_file')
    $id = Confirm-VmId (Get-Field $Arguments 'vm')
    $file = Confirm-File (Get-Field $Arguments 'credential_file')
    $vm = Get-VmById $id
    if ([string](Get-Field $vm 'State') -cne 'Running') { Stop-Request 'Refused' 'the VM is not running' }
    # Made by the agent's own account with Export-Clixml, which encrypts it for that account on this machine.
    $credential = Import-Clixml -LiteralPath (Confirm-File $file) -ErrorAction Stop
    if ($credential -isnot [System.Management.Automation.PSCredential]) {
        Stop-Request 'Invalid' 'the credential file holds no credential'
    }
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
