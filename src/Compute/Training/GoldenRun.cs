using System.Net;
using System.Net.Sockets;
using System.Runtime.ExceptionServices;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using TorchSharp;

namespace Megatron.Compute.Training;

/// <summary>Which ranks a process runs when each node has one process, and where the processes meet.</summary>
/// <param name="NumNodes">NNODES.</param>
/// <param name="NodeRank">NODE_RANK: node 0 runs the rendezvous server.</param>
/// <param name="RanksPerNode">NPROC_PER_NODE, the same on every node.</param>
/// <param name="Master">MASTER_ADDR and MASTER_PORT.</param>
public sealed record NodePlacement(int NumNodes, int NodeRank, int RanksPerNode, IPEndPoint Master)
{
    /// <summary>Ranks of all nodes.</summary>
    public int WorldSize => NumNodes * RanksPerNode;

    /// <summary>Global rank of this node's first rank.</summary>
    public int FirstRank => NodeRank * RanksPerNode;

    /// <summary>Ranks that share this machine's cores: all of them when the nodes meet at a loopback address.</summary>
    public int RanksOnThisMachine => IPAddress.IsLoopback(Master.Address) ? WorldSize : RanksPerNode;
}

/// <summary>Runs a <see cref="GoldenVerifier"/> on each rank of a layout: threads of this process, or of one process on each of several nodes.</summary>
public static class GoldenRun
{
    private const string AttemptName = "verify/1";

    private static readonly TimeSpan CollectiveTimeout = TimeSpan.FromMinutes(30);

    /// <summary>Runs all comparisons and writes the dump that the configuration asks for.</summary>
    /// <param name="config">Golden folder, layout, micro-batch size, dtype, recompute; hyperparameters come from the folder.</param>
    /// <param name="worldSize">Number of ranks; a single one runs on the calling thread.</param>
    /// <param name="environment">Where libtorch is, and each rank's share of the cores.</param>
    /// <returns>What rank 0 found; all ranks compare the same values.</returns>
    /// <exception cref="ConfigException">The folder or the layout cannot be used.</exception>
    public static IReadOnlyList<GoldenCheck> Run(TrainingConfig config, int worldSize, RankEnvironment environment)
    {
        var resolved = GoldenVerifier.Resolve(config, worldSize);
        var world = new LoopbackWorld(CollectiveTimeout);
        if (worldSize == 1) return RunRank(resolved, worldSize, 0, 0, _ => world, environment);
        var gpus = new IProcessGroupFactory?[worldSize];
        return RunThreads(worldSize, rank => RunRank(resolved, worldSize, rank, rank, device =>
        {
            if (device.type != DeviceType.CUDA) return world;
            Volatile.Write(ref gpus[rank], environment.ProcessGroups(Start(resolved, worldSize, rank, rank, "local:verify/1"), device));
            return gpus[rank] ?? world;
        }, environment), reason =>
        {
            world.Abort(reason);
            for (var rank = 0; rank < gpus.Length; rank++) Volatile.Read(ref gpus[rank])?.Abort(reason);
        });
    }

    /// <summary>
    /// This node's part of a run over TCP (<c>--distributed_backend gloo</c>), or NCCL between GPUs; called on every node, it returns the same on each.
    /// </summary>
    /// <param name="config">As in <see cref="Run"/>; the same on every node.</param>
    /// <param name="cancellation">Gives up the meeting of the ranks.</param>
    /// <exception cref="ConfigException">The folder, the layout or the master's address cannot be used.</exception>
    /// <exception cref="RankFaultException">A rank did not come or was lost; it is named.</exception>
    public static IReadOnlyList<GoldenCheck> RunNode(TrainingConfig config, NodePlacement placement, RankEnvironment environment, CancellationToken cancellation)
    {
        var resolved = GoldenVerifier.Resolve(config, placement.WorldSize);
        using var server = placement.NodeRank == 0 ? Serve(placement) : null;
        var timeout = TimeSpan.FromMinutes(config.DistributedTimeoutMinutes);
        var worlds = new IProcessGroupFactory?[placement.RanksPerNode];
        using var giveUp = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        try
        {
            return RunThreads(placement.RanksPerNode, local =>
            {
                var rank = placement.FirstRank + local;
                return RunRank(resolved, placement.WorldSize, rank, local, device =>
                {
                    var endPoint = $"tcp://{placement.Master}";
                    IProcessGroupFactory world = device.type == DeviceType.CUDA
                        ? environment.ProcessGroups(Start(resolved, placement.WorldSize, rank, local, endPoint), device)
                        : TcpWorld.Join(endPoint, AttemptName, rank, timeout, giveUp.Token);
                    Volatile.Write(ref worlds[local], world);
                    return world;
                }, environment);
            }, reason =>
            {
                giveUp.Cancel();
                for (var local = 0; local < worlds.Length; local++) Volatile.Read(ref worlds[local])?.Abort(reason);
            });
        }
        finally
        {
            foreach (var world in worlds) (world as IDisposable)?.Dispose();
        }
    }

    private static StartRank Start(TrainingConfig config, int worldSize, int rank, int localRank, string endPoint) =>
        new(new AttemptId("verify", 1), config.ToJson(), rank, worldSize, localRank, endPoint, LoadFolder: null);

    /// <summary>Runs each rank on a thread; when one fails, the others are aborted and its exception is thrown.</summary>
    private static IReadOnlyList<GoldenCheck> RunThreads(int numRanks, Func<int, IReadOnlyList<GoldenCheck>> run, Action<string> abort)
    {
        var results = new IReadOnlyList<GoldenCheck>[numRanks];
        var failures = new List<Exception>();
        var threads = new Thread[numRanks];
        for (var i = 0; i < numRanks; i++)
        {
            var local = i;
            threads[local] = new Thread(() =>
            {
                try
                {
                    results[local] = run(local);
                }
                catch (Exception failure)
                {
                    lock (failures) failures.Add(failure);
                    abort($"rank {local} of this process failed: {failure.Message}");
                }
            })
            { Name = $"rank-{local}", IsBackground = true };
            threads[local].Start();
        }
        foreach (var thread in threads) thread.Join();
        if (failures.Count > 0) ExceptionDispatchInfo.Throw(failures[0]); // the others follow from it
        return results[0];
    }

    private static IReadOnlyList<GoldenCheck> RunRank(
        TrainingConfig config, int worldSize, int rank, int localRank, Func<torch.Device, IProcessGroupFactory> factoryOf, RankEnvironment environment)
    {
        var device = CudaDevices.Choose(config.Device, localRank, environment.PrepareThread());
        environment.PrepareDevice(device, config, _ => { });
        using var parallel = ParallelState.Create(RunSettings.Dims(config, worldSize), rank, factoryOf(device), config.SequenceParallel);
        using var verifier = new GoldenVerifier(config, parallel, device);
        var checks = verifier.Run();
        if (rank == 0 && config.Dump is { } dump) verifier.WriteDump(dump);
        parallel.World.Barrier(); // nobody leaves while another still talks to it
        return checks;
    }

    private static TcpRendezvousServer Serve(NodePlacement placement)
    {
        try
        {
            return new TcpRendezvousServer(placement.Master, maxConnections: 2 * placement.WorldSize + 16);
        }
        catch (SocketException problem)
        {
            throw new ConfigException("CFG010",
                $"Node 0 cannot listen on MASTER_ADDR:MASTER_PORT = {placement.Master} ({problem.Message}); give an address of this machine and a free port.");
        }
    }
}
