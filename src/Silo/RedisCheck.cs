using Megatron.Compute.Configuration;
using StackExchange.Redis;

namespace Megatron.Silo;

/// <summary>
/// Asks a Redis, before anything is started, whether a cluster can be kept there: the clustering library alone would wait for half a minute
/// and then fail with a stack trace.
/// </summary>
public static class RedisCheck
{
    private static readonly Version oldest = new(6, 0);

    /// <summary>More than a running cluster waits: on a busy machine the first answer takes its time.</summary>
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(4.5);

    /// <summary>Returns when the Redis answers and can be written.</summary>
    /// <exception cref="ConfigException">CTRL001 not reachable, CTRL002 login refused, CTRL003 read-only, CTRL004 too old; within 5 s.</exception>
    public static async Task RequireAsync(ClusterAddress address, CancellationToken cancellation = default)
    {
        var options = address.ToRedis();
        options.AbortOnConnectFail = true;
        options.ConnectRetry = 1;
        options.ConnectTimeout = options.AsyncTimeout = (int)patience.TotalMilliseconds;
        try
        {
            await using var redis = await ConnectionMultiplexer.ConnectAsync(options).WaitAsync(cancellation);
            var server = redis.GetServer(redis.GetEndPoints()[0]);
            if (server.Version < oldest)
                throw new ConfigException("CTRL004", $"Redis at {address} is version {server.Version}; version {oldest} or newer is needed.");
            if (server.IsReplica)
                throw new ConfigException("CTRL003", $"Redis at {address} is a read-only replica; give the address of its primary.");
            await redis.GetDatabase().PingAsync().WaitAsync(cancellation);
        }
        catch (Exception fault) when (fault is RedisException or TimeoutException)
        {
            throw IsLogin(fault)
                ? new ConfigException("CTRL002", $"Redis at {address} refuses the login; write redis://user:password@host:port with the right user and password.")
                : new ConfigException("CTRL001", $"Redis at {address} cannot be reached; start it, or correct the address given with --cluster.");
        }
    }

    private static bool IsLogin(Exception fault)
    {
        for (Exception? inner = fault; inner is not null; inner = inner.InnerException)
        {
            if (inner is RedisConnectionException { FailureType: ConnectionFailureType.AuthenticationFailure })
                return true;
            if (inner.Message.Contains("NOAUTH", StringComparison.Ordinal) || inner.Message.Contains("WRONGPASS", StringComparison.Ordinal))
                return true;
        }
        return false;
    }
}
