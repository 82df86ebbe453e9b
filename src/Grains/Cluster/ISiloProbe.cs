using System.Net;

namespace Megatron.Grains.Cluster;

/// <summary>Looks whether the process of a silo is still there.</summary>
public interface ISiloProbe
{
    /// <summary>True only when its machine answers and says that nobody listens at the address any more; silence proves nothing.</summary>
    Task<bool> IsGoneAsync(IPEndPoint silo);
}

/// <summary>For silos without addresses of their own, as in tests: nobody is ever gone.</summary>
internal sealed class NoSiloProbe : ISiloProbe
{
    public Task<bool> IsGoneAsync(IPEndPoint silo) => Task.FromResult(false);
}
