@{
    RootModule = 'FailoverClusters.psm1'
    ModuleVersion = '2.0.0.0'
    FunctionsToExport = @('Get-Cluster', 'Get-ClusterGroup', 'Remove-ClusterGroup')
    CmdletsToExport = @()
    AliasesToExport = @()
}
