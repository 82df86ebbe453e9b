namespace Megatron.Grains.Cluster;

/// <summary>A silo as its peers reach it, key = key of its first device; lives on that silo and answers while the silo's turns run.</summary>
public interface INodeGrain : IGrainWithStringKey
{
    /// <summary>Called by the other silos twice a second: whether they reach this one.</summary>
    [ResponseTimeout("00:00:01")]
    Task Ping();
}
