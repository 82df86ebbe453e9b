using StackExchange.Redis;

namespace Megatron.Silo;

/// <summary>What Redis says about the cluster.</summary>
public enum GuardAnswer
{
    /// <summary>Redis did not answer.</summary>
    Silent,

    /// <summary>It holds the cluster that this silo has joined.</summary>
    Intact,

    /// <summary>It has lost it, or holds another one.</summary>
    Lost,
}

/// <summary>A Redis that must not be used: it has lost a cluster whose silos still live.</summary>
public sealed class ClusterLostException(string message) : Exception(message);

/// <summary>
/// A random mark of the cluster in its Redis. When Redis comes back empty, Orleans notices nothing: the old silos go on, and a new one would found a
/// second cluster with the same name. Here the old silos miss the mark, leave a warning in its place and halt; a new silo that finds no mark sets one
/// and waits long enough for such a warning before it joins.
/// </summary>
public sealed class ClusterGuard : IAsyncDisposable
{
    private const string Warning = "lost:";
    private static readonly TimeSpan claimTime = TimeSpan.FromSeconds(2.5);
    private static readonly TimeSpan warningTime = TimeSpan.FromSeconds(15);
    private static readonly TimeSpan askTimeout = TimeSpan.FromSeconds(1);

    private readonly IConnectionMultiplexer redis;
    private readonly string key;
    private readonly string mark;

    private ClusterGuard(IConnectionMultiplexer redis, ClusterAddress address, string mark)
    {
        this.redis = redis;
        this.mark = mark;
        key = KeyOf(address);
        LossMessage = $"The Redis of {address} has lost the cluster's state (it was restarted empty, or another cluster has taken its place); this silo halts. Start all silos again, and the jobs with --resume.";
    }

    /// <summary>True once the loss was seen.</summary>
    public bool IsLost { get; private set; }

    /// <summary>What to tell the operator then.</summary>
    public string LossMessage { get; }

    /// <summary>Joins the cluster that Redis holds, or founds one.</summary>
    /// <exception cref="ClusterLostException">Silos of a cluster that this Redis has lost are still there.</exception>
    public static async Task<ClusterGuard> JoinAsync(ClusterAddress address, TimeProvider time, CancellationToken cancellation)
    {
        var redis = await ConnectionMultiplexer.ConnectAsync(address.ToRedis());
        try
        {
            var database = redis.GetDatabase();
            string key = KeyOf(address);
            if (await database.StringSetAsync(key, Guid.NewGuid().ToString("N"), when: When.NotExists))
                await Task.Delay(claimTime, time, cancellation);
            string mark = await database.StringGetAsync(key) is { HasValue: true } found ? found.ToString() : Warning;
            if (mark.StartsWith(Warning, StringComparison.Ordinal))
                throw new ClusterLostException($"The Redis of {address} has lost the state of a cluster whose silos still run; wait until they have halted (15 s), then start again.");
            return new ClusterGuard(redis, address, mark);
        }
        catch
        {
            await redis.DisposeAsync();
            throw;
        }
    }

    /// <summary>Asks Redis; called twice a second. After a loss it renews the warning each time.</summary>
    public async Task<GuardAnswer> CheckAsync()
    {
        try
        {
            var database = redis.GetDatabase();
            var found = await database.StringGetAsync(key).WaitAsync(askTimeout);
            if (!IsLost && found == mark)
                return GuardAnswer.Intact;
            IsLost = true;
            await database.StringSetAsync(key, Warning + mark, warningTime).WaitAsync(askTimeout);
            return GuardAnswer.Lost;
        }
        catch (Exception fault) when (fault is RedisException or TimeoutException)
        {
            return IsLost ? GuardAnswer.Lost : GuardAnswer.Silent;
        }
    }

    public ValueTask DisposeAsync() => redis.DisposeAsync();

    private static string KeyOf(ClusterAddress address) => $"megatron/{address.ClusterId}/mark";
}
