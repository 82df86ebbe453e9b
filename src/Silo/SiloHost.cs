using System.Net;
using System.Net.Sockets;
using Megatron.Compute.Training;
using Megatron.Grains;
using Megatron.Grains.Cluster;
using Megatron.Grains.Ranks;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Logging;
using Orleans.Configuration;
using Orleans.Serialization;
using Orleans.Storage;
using Serilog;

namespace Megatron.Silo;

/// <summary>
/// A silo inside this process: composition only. Everything a generic host would bring by itself (configuration files, environment variables,
/// console logger, signal handlers) is left out: it costs start-up time, and the console decides on those matters.
/// </summary>
public sealed class SiloHost : IAsyncDisposable
{
    private const int MaxPortAttempts = 5;

    /// <summary>
    /// Of calls that name no limit, which are those of consoles that watch a job. Half of it a request waits for the next event, and so long a job's grain
    /// may be held back from moving to another silo.
    /// </summary>
    private static readonly TimeSpan watchTimeout = TimeSpan.FromSeconds(2);

    private static readonly TimeSpan leaveTime = TimeSpan.FromSeconds(1.5);

    private readonly IHost host;
    private readonly SiloProcess process;
    private readonly ClusterGuard? guard;
    private readonly SiloLease? lease;

    private SiloHost(IHost host, SiloProcess process, ClusterGuard? guard)
    {
        this.host = host;
        this.process = process;
        this.guard = guard;
        if (guard is null)
            return;
        var services = host.Services;
        lease = new SiloLease(new SiloLeaseParts(
            Grains, services.GetRequiredService<ClusterDevices>(), services.GetRequiredService<RankWorkerRegistry>(), process.Fence, guard, process, TimeProvider.System,
            services.GetRequiredService<ILogger<SiloLease>>()));
        lease.Start();
    }

    /// <summary>Completes when the process should end and be started again, whatever still runs in it.</summary>
    public Task<SiloEnd> Ended => process.Ended;

    /// <summary>The way to the grains of this silo and its cluster.</summary>
    public IGrainFactory Grains => host.Services.GetRequiredService<IGrainFactory>();

    /// <summary>
    /// Starts a silo in its cluster. Without <see cref="SiloOptions.Cluster"/> it is a cluster of its own: loopback, ports chosen by the operating
    /// system, grain state in memory.
    /// </summary>
    /// <param name="createWorker">Makes the worker of a device when the first rank is started on it; the silo disposes it.</param>
    public static Task<SiloHost> StartAsync(SiloOptions options, Func<int, IRankWorker> createWorker, CancellationToken cancellation = default) =>
        StartAsync(options, _ => createWorker, cancellation);

    /// <summary>As above, for workers that meet those of other silos.</summary>
    /// <param name="workers">Gets what the control plane lends to the workers, once, and returns what makes them.</param>
    public static async Task<SiloHost> StartAsync(
        SiloOptions options, Func<RankServices, Func<int, IRankWorker>> workers, CancellationToken cancellation = default)
    {
        var guard = options.Cluster?.Redis is { } redis ? await ClusterGuard.JoinAsync(redis, TimeProvider.System, cancellation) : null;
        for (int attempt = 1; ; attempt++)
        {
            var process = new SiloProcess(options.Cluster is not null);
            var host = Build(options, process, workers);
            try
            {
                await host.StartAsync(cancellation);
                if (options.Cluster is not null)
                    CompileAhead.Start();
                return new SiloHost(host, process, guard);
            }
            catch (Exception fault) when (attempt < MaxPortAttempts && IsAddressInUse(fault) && options.Cluster is null or { SiloPort: 0 })
            {
                // Another program took the port between the question and the start: ask for another one.
                await DisposeHostAsync(host);
            }
            catch
            {
                await DisposeHostAsync(host);
                if (guard is not null)
                    await guard.DisposeAsync();
                throw;
            }
        }
    }

    /// <summary>Before a silo of a cluster leaves: its ranks save and end, new ones go elsewhere. Takes a few seconds at most.</summary>
    public Task DrainAsync() =>
        SiloDrain.RunAsync(Grains, host.Services.GetRequiredService<ClusterDevices>(), host.Services.GetRequiredService<NodeIdentity>(), TimeProvider.System);

    /// <summary>
    /// Leaves the cluster, so that nobody calls what is here any more. The rank workers are left as they are, one of them hangs: the process must end
    /// after that.
    /// </summary>
    public async Task LeaveAsync()
    {
        try
        {
            await StopAsync();
        }
        catch (Exception fault)
        {
            // The others will find out.
            SiloLog.LeaveFailed(host.Services.GetRequiredService<ILogger<SiloHost>>(), fault);
        }
    }

    /// <summary>Leaves the cluster, then ends the rank workers.</summary>
    public async ValueTask DisposeAsync()
    {
        await StopAsync();
        lease?.Dispose();
        await DisposeHostAsync(host);
        if (guard is not null)
            await guard.DisposeAsync();
    }

    // A call in flight must not hold the silo for half a minute: who made it repeats it.
    private async Task StopAsync()
    {
        using var patience = new CancellationTokenSource(guard is null ? Timeout.InfiniteTimeSpan : leaveTime);
        await host.StopAsync(patience.Token);
    }

    private static IHost Build(SiloOptions options, SiloProcess process, Func<RankServices, Func<int, IRankWorker>> workers)
    {
        var builder = Host.CreateEmptyApplicationBuilder(new HostApplicationBuilderSettings { DisableDefaults = true, ApplicationName = "megatron" });
        builder.Services.AddSingleton<IHostLifetime, SilentLifetime>();
        builder.Services.AddSerilog(SiloLogging.Create(options), dispose: true);
        builder.UseOrleans(silo =>
        {
            if (options.Cluster is { } cluster)
                Join(silo, cluster);
            else
                StandAlone(silo);
            silo.Configure<ClusterMembershipOptions>(options.Membership.ApplyTo);
            silo.Services.AddSingleton<ISiloProcess>(process);
            if (options.Cluster is not null) silo.Services.AddSingleton<ISiloProbe, PortProbe>();
            silo.Services.AddSingleton(process.Fence);
            silo.AddTrainingGrains(new NodeIdentity(options.NodeName, options.Devices, options.Machine), workers);
        });
        return builder.Build();
    }

    // A cluster id of its own, so that two runs on one machine can never talk to each other; no gateway, because the only client is inside.
    private static void StandAlone(ISiloBuilder silo)
    {
        silo.UseLocalhostClustering(FreePort(), gatewayPort: 0, serviceId: ClusterAddress.ServiceId, clusterId: "local-" + Guid.NewGuid().ToString("N"));
        silo.AddMemoryGrainStorage(GrainServices.JobStorage);
    }

    private static void Join(ISiloBuilder silo, ClusterJoin cluster)
    {
        silo.Configure<SiloMessagingOptions>(options => options.ResponseTimeout = watchTimeout);
        silo.Configure<ClusterOptions>(options =>
        {
            options.ServiceId = ClusterAddress.ServiceId;
            options.ClusterId = cluster.Redis?.ClusterId ?? ClusterAddress.ServiceId;
        });
        silo.ConfigureEndpoints(
            cluster.Address, cluster.SiloPort == 0 ? FreePort() : cluster.SiloPort, cluster.GatewayPort == 0 ? FreePort() : cluster.GatewayPort,
            listenOnAnyHostAddress: !IPAddress.IsLoopback(cluster.Address));
        if (cluster.Redis is { } redis)
        {
            silo.UseRedisClustering(options => options.ConfigurationOptions = redis.ToRedis());
            silo.AddRedisGrainStorage(GrainServices.JobStorage, options => options.Configure<Serializer>((storage, serializer) =>
            {
                storage.ConfigurationOptions = redis.ToRedis();
                storage.GrainStorageSerializer = new OrleansGrainStorageSerializer(serializer);
            }));
        }
        else
        {
            silo.UseDevelopmentClustering(cluster.Primary ?? throw new ArgumentException("A cluster needs a Redis or a primary silo.", nameof(cluster)));
            silo.AddMemoryGrainStorage(GrainServices.JobStorage);
        }
    }

    private static int FreePort()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        return ((IPEndPoint)listener.LocalEndpoint).Port;
    }

    private static bool IsAddressInUse(Exception fault)
    {
        for (Exception? inner = fault; inner is not null; inner = inner.InnerException)
        {
            if (inner is SocketException { SocketErrorCode: SocketError.AddressAlreadyInUse })
                return true;
        }
        return false;
    }

    // The workers are disposed asynchronously, so the container must be too.
    private static async ValueTask DisposeHostAsync(IHost host)
    {
        if (host is IAsyncDisposable disposable)
            await disposable.DisposeAsync();
        else
            host.Dispose();
    }

    /// <summary>Signals belong to the console: it asks the job to save before the silo ends.</summary>
    private sealed class SilentLifetime : IHostLifetime
    {
        public Task WaitForStartAsync(CancellationToken cancellationToken) => Task.CompletedTask;

        public Task StopAsync(CancellationToken cancellationToken) => Task.CompletedTask;
    }
}
