using Megatron.Compute.Checkpointing;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Training.Snapshots;

/// <summary>Where a slice of the state lies: a <see cref="StateSlice"/> without its values.</summary>
internal sealed record SnapshotSlice(TensorBlock Block, StateKind Kind, long Begin, long End)
{
    /// <summary>Elements.</summary>
    public long Count => End - Begin;
}

/// <summary>One rank's part of a snapshot in host memory: the state that it would write into a checkpoint.</summary>
/// <param name="Rank">Global rank whose state it is.</param>
/// <param name="Slices">What lies in <paramref name="Values"/>, in order.</param>
/// <param name="Values">[sum of counts], fp32, CPU: belongs to the store once it is added there.</param>
internal sealed record RankSnapshot(int Rank, IReadOnlyList<SnapshotSlice> Slices, Tensor Values)
{
    /// <summary>Slices to be written; the views belong to the dispose scope that is open.</summary>
    /// <param name="values">An alias of <see cref="Values"/>.</param>
    public IReadOnlyList<StateSlice> StateIn(Tensor values)
    {
        var (state, offset) = (new List<StateSlice>(Slices.Count), 0L);
        foreach (var slice in Slices)
        {
            state.Add(new StateSlice(slice.Block, slice.Kind, slice.Begin, slice.End, values.narrow(0, offset, slice.Count)));
            offset += slice.Count;
        }
        return state;
    }
}

/// <summary>What a snapshot is beside its values: the same on all ranks.</summary>
internal sealed record SnapshotRun
{
    /// <summary>Job, attempt, step, data cursor: the facts of the checkpoint that it may become.</summary>
    public required RunFacts Facts { get; init; }

    /// <summary>Parts that make it whole.</summary>
    public required int WorldSize { get; init; }

    /// <summary>The run's folder.</summary>
    public required string Root { get; init; }

    /// <summary>Names and shapes of the model's weights. They are not written: the masters are the weights.</summary>
    public required HfShardPlan ModelPlan { get; init; }

    /// <summary>Configuration and tokenizer.</summary>
    public required HfSideFiles SideFiles { get; init; }

    /// <summary>Orders the snapshots of a job.</summary>
    public (int Attempt, long Iteration) Key => (Facts.Attempt, Facts.Trainer.Iteration);
}
