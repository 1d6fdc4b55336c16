@{
    RootModule = 'PnpDevice.psm1'
    ModuleVersion = '1.0.0.0'
    FunctionsToExport = @('Get-PnpDevice', 'Get-PnpDeviceProperty', 'Disable-PnpDevice', 'Enable-PnpDevice')
    CmdletsToExport = @()
    AliasesToExport = @()
}
