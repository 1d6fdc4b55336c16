@{
    RootModule = 'Hyper-V.psm1'
    ModuleVersion = '2.0.0.0'
    FunctionsToExport = @(
        'Get-VM', 'Get-VMHost', 'Get-VMSnapshot', 'Get-VMNetworkAdapter', 'Get-VMHostAssignableDevice', 'Get-VMResourcePool',
        'Get-VMAssignableDevice', 'Set-VM', 'Start-VM', 'Stop-VM', 'Dismount-VMHostAssignableDevice',
        'Mount-VMHostAssignableDevice', 'Add-VMAssignableDevice', 'Remove-VMAssignableDevice',
        'Invoke-Command', 'Receive-Job'
    )
    CmdletsToExport = @()
    AliasesToExport = @()
}
