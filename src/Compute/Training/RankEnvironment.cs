using System.Collections.Concurrent;
using System.Net;
using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using Megatron.Compute.Training.Snapshots;
using TorchSharp;

namespace Megatron.Compute.Training;

/// <summary>What a silo gives to the ranks it hosts.</summary>
public sealed record RankEnvironment
{
    private readonly ConcurrentDictionary<int, long> reserved = new(); // by device: bytes that were taken when memory was last reserved

    /// <summary>Where libtorch is looked for.</summary>
    public required LibTorchOptions LibTorch { get; init; }

    /// <summary>Clock of checkpoints' time stamps.</summary>
    public required TimeProvider Time { get; init; }

    /// <summary>Intra-operation threads of a rank to which nobody gives a share: the cores of the machine divided by the ranks of this process.</summary>
    public required int ThreadsPerRank { get; init; }

    /// <summary>More than one rank is a thread of this process (DESIGN D2); where they have GPUs, docs/adr/0012 says what follows from it.</summary>
    public bool HostsSeveralRanks { get; init; }

    /// <summary>Closed while this process may not commit checkpoints.</summary>
    public SideEffectFence Fence { get; init; } = new();

    /// <summary>Makes the process groups of an attempt for a rank with the given device; called once per rank, on its thread.</summary>
    public required Func<StartRank, torch.Device, IProcessGroupFactory> ProcessGroups { get; init; }

    /// <summary>Makes the groups in which snapshots travel, which move CPU tensors: the rank's own, given last, or others beside those of a GPU.</summary>
    public required Func<StartRank, torch.Device, IProcessGroupFactory, IProcessGroupFactory> SnapshotGroups { get; init; }

    /// <summary>Keeps the snapshots of this process.</summary>
    public required PeerSnapshotStore Snapshots { get; init; }

    /// <summary>
    /// The environment of ranks that are threads of one process, or of several: <see cref="StartRank.RendezvousEndpoint"/> says which.
    /// </summary>
    /// <param name="ranks">Ranks that this process hosts.</param>
    public static RankEnvironment InProcess(LibTorchOptions libTorch, TimeProvider time, int ranks) => OfSilo(libTorch, time, ranks, null);

    /// <summary>As <see cref="InProcess"/>, and for endpoints <c>cluster:…</c> ranks of several silos that meet through the control plane.</summary>
    /// <param name="meeting">How; null when this process belongs to no cluster.</param>
    public static RankEnvironment OfSilo(LibTorchOptions libTorch, TimeProvider time, int ranks, RankMeeting? meeting)
    {
        var several = ranks > 1;
        if (several) libTorch = libTorch with { OwnsSeveralGpus = true };
        var (threads, processes, gpus, besideGpus) = (new LoopbackWorlds(), new TcpWorlds(meeting), new NcclWorlds(meeting, libTorch, several), new TcpWorlds(meeting));
        return new RankEnvironment
        {
            LibTorch = libTorch,
            HostsSeveralRanks = several,
            Time = time,
            ThreadsPerRank = Math.Max(1, Environment.ProcessorCount / ranks),
            ProcessGroups = (start, device) =>
                start.WorldSize > 1 && device.type == DeviceType.CUDA ? gpus.Of(start, device.index)
                : start.RendezvousEndpoint.StartsWith("local:", StringComparison.Ordinal) ? threads.Of(start) : processes.Of(start),
            SnapshotGroups = (start, device, groups) => device.type == DeviceType.CUDA ? besideGpus.Of(start) : groups,
            Snapshots = new PeerSnapshotStore(time, new SideEffectFence()),
        };
    }

    /// <summary>Loads libtorch and sets this thread's share of the cores.</summary>
    /// <param name="numThreads">The share; null: <see cref="ThreadsPerRank"/>.</param>
    /// <param name="ranksMax">
    /// Ranks that the same run may have in another layout with the same bits: the share is that of so many, because how a sum is cut among threads
    /// decides on its last bits. Null: <paramref name="numThreads"/> counts.
    /// </param>
    public LoadedLibTorch PrepareThread(int? numThreads = null, int? ranksMax = null)
    {
        var loaded = Native.LibTorch.Load(LibTorch);
        torch.set_num_threads(ranksMax is { } ranks ? Math.Max(1, Environment.ProcessorCount / ranks) : numThreads ?? ThreadsPerRank);
        return loaded;
    }

    /// <summary>
    /// Before the groups of a rank are opened: loads and takes what could otherwise be loaded and taken behind a collective that waits for another GPU of
    /// this process. Does nothing for a CPU, nor where a process has one GPU.
    /// </summary>
    /// <param name="config">Which kernels it needs.</param>
    /// <param name="warn">Gets a line when the user's own settings undo a part of it.</param>
    public void PrepareDevice(torch.Device device, TrainingConfig config, Action<string> warn)
    {
        if (!HostsSeveralRanks || device.type != DeviceType.CUDA) return;
        if (!CudaKernels.AreModulesEager())
            warn("CUDA_MODULE_LOADING is not EAGER although this process owns several GPUs: a kernel that is loaded behind a waiting collective can hang; unset the variable.");
        CudaKernels.LoadAll(RunSettings.Model(config, device).Dtype, config.Fp8Format is not null);
    }

    /// <summary>
    /// After the steps in which a rank takes its memory: takes some more beforehand, for rows that are longer later on. Once for what an attempt takes that
    /// none before it took; does nothing where <see cref="PrepareDevice"/> does nothing.
    /// </summary>
    public void ReserveMemory(torch.Device device)
    {
        if (!HostsSeveralRanks || device.type != DeviceType.CUDA || CudaDevices.UsedBytes() <= reserved.GetValueOrDefault(device.index)) return;
        CudaDevices.Reserve(device);
        reserved[device.index] = CudaDevices.UsedBytes();
    }

    /// <summary>One loopback world for each attempt: a new attempt never meets the groups of an old one.</summary>
    private sealed class LoopbackWorlds
    {
        private static readonly TimeSpan Timeout = TimeSpan.FromMinutes(30);
        private readonly Lock gate = new();
        private (AttemptId Attempt, LoopbackWorld World)? newest;

        public IProcessGroupFactory Of(StartRank start)
        {
            lock (gate)
            {
                if (newest is { } current && current.Attempt == start.Attempt) return current.World;
                var world = new LoopbackWorld(Timeout);
                newest = (start.Attempt, world);
                return world;
            }
        }
    }

    /// <summary>One NCCL world for each rank of this process and attempt; that of an older attempt is closed when the next one starts.</summary>
    private sealed class NcclWorlds(RankMeeting? meeting, LibTorchOptions libTorch, bool sharesProcess)
    {
        private static readonly TimeSpan LongestJoin = TimeSpan.FromMinutes(30), StoreRequestTimeout = TimeSpan.FromSeconds(30);
        private readonly Lock gate = new();
        private readonly Dictionary<(string JobId, int Rank), NcclWorld> newest = [];
        private (AttemptId Attempt, InProcessRendezvousStore Store)? local;

        public IProcessGroupFactory Of(StartRank start, int device)
        {
            var config = TrainingConfig.FromJson(start.ConfigJson);
            if (config.DistributedBackend != "nccl")
                throw new ConfigException(
                    "GPU005", $"--distributed_backend = {config.DistributedBackend} joins CPU ranks, and rank {start.Rank} has a GPU; leave the option out, or give --device cpu.");
            var timeout = TimeSpan.FromMinutes(config.DistributedTimeoutMinutes);
            var key = (start.Attempt.JobId, start.Rank);
            NcclWorld? old;
            lock (gate) newest.Remove(key, out old);
            old?.Dispose();
            var world = new NcclWorld(StoreOf(start), new NcclWorldOptions
            {
                Attempt = FormattableString.Invariant($"{start.Attempt.JobId}/{start.Attempt.Attempt}"),
                Device = device,
                SharesProcess = sharesProcess,
                Timeout = timeout,
                JoinTimeout = timeout < LongestJoin ? timeout : LongestJoin,
            }, Native.LibTorch.Load(libTorch));
            lock (gate) newest[key] = world;
            return world;
        }

        private IRendezvousStore StoreOf(StartRank start)
        {
            if (Uri.TryCreate(start.RendezvousEndpoint, UriKind.Absolute, out var uri) && uri.Scheme == "tcp")
                return new TcpRendezvousStore(uri.IdnHost, uri.Port, LongestJoin, StoreRequestTimeout, CancellationToken.None);
            if (!start.RendezvousEndpoint.StartsWith("local:", StringComparison.Ordinal))
                return meeting?.StoreOf(start)
                    ?? throw new RankFaultException($"This process belongs to no cluster, but its ranks should meet at {start.RendezvousEndpoint}.");
            lock (gate)
            {
                if (local is not { } current || current.Attempt != start.Attempt) local = current = (start.Attempt, new InProcessRendezvousStore());
                return current.Store;
            }
        }
    }

    /// <summary>One TCP world for each rank of this process and attempt; that of an older attempt is closed when the next one starts.</summary>
    private sealed class TcpWorlds(RankMeeting? meeting)
    {
        /// <summary>Ranks prepare their data before they join, and the slowest may have to read much.</summary>
        private static readonly TimeSpan LongestJoin = TimeSpan.FromMinutes(30);

        private readonly Lock gate = new();
        private readonly Dictionary<(string JobId, int Rank), TcpWorld> newest = [];

        public IProcessGroupFactory Of(StartRank start)
        {
            var timeout = TimeSpan.FromMinutes(TrainingConfig.FromJson(start.ConfigJson).DistributedTimeoutMinutes);
            var key = (start.Attempt.JobId, start.Rank);
            TcpWorld? old;
            lock (gate) newest.Remove(key, out old);
            old?.Dispose();
            var world = Open(start, timeout);
            lock (gate) newest[key] = world;
            return world;
        }

        private TcpWorld Open(StartRank start, TimeSpan timeout)
        {
            var attempt = FormattableString.Invariant($"{start.Attempt.JobId}/{start.Attempt.Attempt}");
            if (start.RendezvousEndpoint.StartsWith("tcp://", StringComparison.Ordinal))
                return TcpWorld.Join(start.RendezvousEndpoint, attempt, start.Rank, timeout, CancellationToken.None);
            if (meeting is null)
                throw new RankFaultException($"This process belongs to no cluster, but its ranks should meet at {start.RendezvousEndpoint}.");
            return new TcpWorld(meeting.StoreOf(start), new TcpWorldOptions
            {
                Attempt = attempt,
                Rank = start.Rank,
                Address = meeting.Address,
                Timeout = timeout,
                JoinTimeout = timeout < LongestJoin ? timeout : LongestJoin,
            });
        }
    }
}

/// <summary>How ranks of several silos find one another.</summary>
/// <param name="Stores">The rendezvous of an attempt by its key.</param>
/// <param name="Address">Address of this machine in the training network.</param>
public sealed record RankMeeting(Func<string, IRendezvousStore> Stores, IPAddress Address)
{
    /// <summary>How a <see cref="StartRank.RendezvousEndpoint"/> in a cluster begins; the key follows.</summary>
    public const string Scheme = "cluster:";

    /// <summary>The rendezvous that a rank was told.</summary>
    /// <exception cref="RankFaultException">It is none of a cluster.</exception>
    public IRendezvousStore StoreOf(StartRank start) => start.RendezvousEndpoint.StartsWith(Scheme, StringComparison.Ordinal)
        ? Stores(start.RendezvousEndpoint[Scheme.Length..])
        : throw new RankFaultException($"Rank {start.Rank} of this cluster should meet others at {start.RendezvousEndpoint}, which is no rendezvous of a cluster.");
}
