using Megatron.Grains.Jobs;

namespace Megatron.Grains.Cluster;

/// <summary>A device and the silo that owns it now.</summary>
/// <param name="Silo">Address of the silo, generation included: after a restart it is another silo.</param>
[GenerateSerializer, Immutable]
public sealed record ClusterDevice([property: Id(0)] DeviceId Id, [property: Id(1)] string Silo);
