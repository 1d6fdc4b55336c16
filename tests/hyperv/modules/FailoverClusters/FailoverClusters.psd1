@{
    RootModule = 'FailoverClusters.psm1'
    ModuleVersion = '2.0.0.0'
    FunctionsToExport = @('Get-Cluster', 'Get-ClusterGroup', 'Get-ClusterResource', 'Remove-ClusterGroup')
    CmdletsToExport = @()
    AliasesToExport = @()
}
