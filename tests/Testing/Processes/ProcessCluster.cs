using System.Globalization;

namespace Megatron.Testing.Processes;

/// <summary>A Redis and silos, each a process of its own on loopback; all ended when it is disposed.</summary>
public sealed class ProcessCluster : IAsyncDisposable
{
    private readonly TemporaryFolder folder = new();
    private readonly List<SiloProcess> silos = [];

    private readonly string membership;
    private readonly IsolatedNetwork? network;
    private readonly bool sharesGpu;

    private ProcessCluster(RedisServer redis, string membership, IsolatedNetwork? network, bool sharesGpu) =>
        (Redis, this.membership, this.network, this.sharesGpu) = (redis, membership, network, sharesGpu);

    /// <summary>Its Redis.</summary>
    public RedisServer Redis { get; }

    /// <summary>What <c>--cluster</c> is given.</summary>
    public string Address => string.Create(CultureInfo.InvariantCulture, $"redis://{(network?.HostAddress ?? "127.0.0.1")}:{Redis.Port}");

    /// <summary>The silos in the order of their start.</summary>
    public IReadOnlyList<SiloProcess> Silos => silos;

    /// <summary>Folder of the silos' logs.</summary>
    public string LogFolder => folder.Combine("logs");

    /// <summary>Starts a Redis and silos n0, n1, … together, and waits for all of them.</summary>
    /// <param name="numSilos">Silos.</param>
    /// <param name="devicesPerSilo">Ranks that each can host.</param>
    /// <param name="membership">
    /// tight measures how fast a loss is seen; relaxed is for tests that ask what happens then, also on a machine that has other things to do.
    /// </param>
    /// <param name="network">Silo n runs on its node n; null: all on loopback.</param>
    /// <param name="sharesGpu">The silos' ranks compute on one GPU: each silo poses as a host of its own to NCCL, which it talks to by sockets.</param>
    public static async Task<ProcessCluster> StartAsync(
        int numSilos, int devicesPerSilo, CancellationToken cancellation, string membership = "relaxed", IsolatedNetwork? network = null, bool sharesGpu = false)
    {
        string[] redisOptions = network is null ? [] : ["--bind", "127.0.0.1", network.HostAddress, "--protected-mode", "no"];
        var cluster = new ProcessCluster(await RedisServer.StartAsync(cancellation, redisOptions), membership, network, sharesGpu);
        try
        {
            for (int i = 0; i < numSilos; i++) cluster.Add(devicesPerSilo);
            foreach (var silo in cluster.silos) await silo.ReadyAsync(cancellation);
            return cluster;
        }
        catch
        {
            await cluster.DisposeAsync();
            throw;
        }
    }

    /// <summary>Starts one more silo; await its <see cref="SiloProcess.ReadyAsync"/>.</summary>
    public SiloProcess Add(int devices)
    {
        int index = silos.Count;
        string node = string.Create(CultureInfo.InvariantCulture, $"n{index}");
        var surroundings = network is null ? new SiloSurroundings() : new SiloSurroundings { Address = network.AddressOf(index), Prefix = network.Prefix(index) };
        if (sharesGpu) surroundings = surroundings with { Environment = HostOfItsOwn(node) };
        var silo = SiloProcess.Start(Address, node, devices, LogFolder, membership, surroundings);
        silos.Add(silo);
        return silo;
    }

    /// <summary>Everything the silos printed, for the message of a failed test.</summary>
    public string Transcript => string.Join('\n', silos.Select(silo => $"--- {silo.Node}\n{silo.Process.Transcript}"));

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        foreach (var silo in silos) await silo.DisposeAsync();
        await Redis.DisposeAsync();
        folder.Dispose();
    }

    private Dictionary<string, string?> HostOfItsOwn(string node) => new() { ["NCCL_HOSTID"] = node, ["NCCL_SOCKET_IFNAME"] = network is null ? "lo" : "eth0" };
}
