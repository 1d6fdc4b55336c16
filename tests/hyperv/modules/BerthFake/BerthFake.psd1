@{
    RootModule = 'BerthFake.psm1'
    ModuleVersion = '1.0'
    FunctionsToExport = @('Import-Clixml', 'Get-WinEvent')
    CmdletsToExport = @()
    AliasesToExport = @()
}
