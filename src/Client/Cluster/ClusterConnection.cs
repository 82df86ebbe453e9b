using Megatron.Compute.Configuration;
using Megatron.Silo;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Orleans.Configuration;
using Orleans.Runtime.Messaging;
using StackExchange.Redis;

namespace Megatron.Client.Cluster;

/// <summary>
/// A console's way to the grains of running silos. It knows all gateways of the cluster and finds new ones, so the loss of a silo costs a
/// moment, not the connection.
/// </summary>
public sealed class ClusterConnection : IAsyncDisposable
{
    private static readonly TimeSpan gatewayRefresh = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(10);
    private static readonly TimeSpan retryDelay = TimeSpan.FromMilliseconds(200);

    private readonly IHost host;

    private ClusterConnection(IHost host, ClusterAddress address) => (this.host, Address) = (host, address);

    /// <summary>The way to the grains.</summary>
    public IGrainFactory Grains => host.Services.GetRequiredService<IGrainFactory>();

    /// <summary>The cluster.</summary>
    public ClusterAddress Address { get; }

    /// <summary>Connects to a gateway of the cluster.</summary>
    /// <exception cref="ConfigException">CTRL001 to CTRL004: its Redis cannot be used; CTRL006: no silo answers.</exception>
    public static async Task<ClusterConnection> OpenAsync(ClusterAddress address, TimeProvider time, CancellationToken cancellation)
    {
        await RedisCheck.RequireAsync(address, cancellation);
        var host = Build(address, time);
        try
        {
            await host.StartAsync(cancellation);
            return new ClusterConnection(host, address);
        }
        catch (Exception fault)
        {
            host.Dispose();
            if (fault is OrleansException or TimeoutException or RedisException or ConnectionFailedException)
                throw new ConfigException("CTRL006", $"No silo of the cluster {address} answers; start one with megatron silo --cluster {address}.");
            throw;
        }
    }

    /// <summary>Runs a question and its answer; a cluster that does not answer is one sentence, not a stack trace.</summary>
    /// <exception cref="ConfigException">CTRL007: it did not answer.</exception>
    public async Task<T> AskAsync<T>(Func<ClusterConnection, Task<T>> ask)
    {
        try
        {
            return await ask(this);
        }
        catch (Exception fault) when (fault is OrleansException or TimeoutException or ConnectionFailedException)
        {
            throw new ConfigException("CTRL007", $"The cluster {Address} does not answer ({fault.Message.Split('\n')[0].Trim().TrimEnd('.')}); ask again in a moment, or see megatron cluster status.");
        }
    }

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        using var soon = new CancellationTokenSource(TimeSpan.FromSeconds(2));
        try
        {
            await host.StopAsync(soon.Token);
        }
        catch (Exception fault) when (fault is OrleansException or OperationCanceledException or TimeoutException)
        {
            // Nothing is lost with a connection that cannot be closed in order.
        }
        host.Dispose();
    }

    private static IHost Build(ClusterAddress address, TimeProvider time)
    {
        var builder = Host.CreateEmptyApplicationBuilder(new HostApplicationBuilderSettings { DisableDefaults = true, ApplicationName = "megatron" });
        builder.Services.AddSingleton<IHostLifetime, SignalsElsewhere>();
        long start = time.GetTimestamp();
        builder.UseOrleansClient(client =>
        {
            client.Configure<ClusterOptions>(options => (options.ServiceId, options.ClusterId) = (ClusterAddress.ServiceId, address.ClusterId));
            client.UseRedisClustering(options => options.ConfigurationOptions = address.ToRedis());
            client.Configure<GatewayOptions>(options => options.GatewayListRefreshPeriod = gatewayRefresh);
            client.UseConnectionRetryFilter(async (_, cancellation) =>
            {
                if (time.GetElapsedTime(start) >= patience) return false;
                await Task.Delay(retryDelay, time, cancellation);
                return true;
            });
        });
        return builder.Build();
    }

    /// <summary>Signals belong to the command: it detaches from the job.</summary>
    private sealed class SignalsElsewhere : IHostLifetime
    {
        public Task WaitForStartAsync(CancellationToken cancellationToken) => Task.CompletedTask;

        public Task StopAsync(CancellationToken cancellationToken) => Task.CompletedTask;
    }
}
