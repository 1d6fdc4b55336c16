@{
    RootModule = 'CimCmdlets.psm1'
    ModuleVersion = '1.0.0.0'
    FunctionsToExport = @('Get-CimInstance', 'Get-ItemProperty')
    CmdletsToExport = @()
    AliasesToExport = @()
}
