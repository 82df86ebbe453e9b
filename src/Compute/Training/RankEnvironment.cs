using Megatron.Compute.Distributed;
using Megatron.Compute.Native;
using TorchSharp;

namespace Megatron.Compute.Training;

/// <summary>What a silo gives to the ranks it hosts.</summary>
public sealed record RankEnvironment
{
    /// <summary>Where libtorch is looked for.</summary>
    public required LibTorchOptions LibTorch { get; init; }

    /// <summary>Clock of checkpoints' time stamps.</summary>
    public required TimeProvider Time { get; init; }

    /// <summary>Intra-operation threads of a rank: the cores of the node divided by its ranks.</summary>
    public required int ThreadsPerRank { get; init; }

    /// <summary>Makes the process groups of an attempt; called once per rank.</summary>
    public required Func<StartRank, IProcessGroupFactory> ProcessGroups { get; init; }

    /// <summary>The environment of ranks that are threads of one process.</summary>
    public static RankEnvironment InProcess(LibTorchOptions libTorch, TimeProvider time, int ranks)
    {
        var worlds = new LoopbackWorlds();
        return new RankEnvironment
        {
            LibTorch = libTorch,
            Time = time,
            ThreadsPerRank = Math.Max(1, Environment.ProcessorCount / ranks),
            ProcessGroups = worlds.Of,
        };
    }

    /// <summary>Loads libtorch and sets this thread's share of the cores.</summary>
    public LoadedLibTorch PrepareThread()
    {
        var loaded = Native.LibTorch.Load(LibTorch);
        torch.set_num_threads(ThreadsPerRank);
        return loaded;
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
}
