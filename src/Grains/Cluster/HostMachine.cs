namespace Megatron.Grains.Cluster;

/// <summary>The machine a silo runs on; silos of one machine share its cores.</summary>
/// <param name="Name">Host name.</param>
/// <param name="NumCores">Cores that its processes may use.</param>
public sealed record HostMachine(string Name, int NumCores);
