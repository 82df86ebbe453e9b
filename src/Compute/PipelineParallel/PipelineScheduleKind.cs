namespace Megatron.Compute.PipelineParallel;

/// <summary>The schedules that one may choose (<c>--pipeline_schedule</c>).</summary>
public enum PipelineScheduleKind
{
    /// <summary>Interleaved with several chunks, 1F1B with several stages, else none.</summary>
    Auto,

    /// <summary><see cref="AllForwardAllBackward"/>.</summary>
    GPipe,

    /// <summary><see cref="OneForwardOneBackward"/>.</summary>
    OneForwardOneBackward,

    /// <summary><see cref="PipelineParallel.InterleavedOneForwardOneBackward"/>.</summary>
    Interleaved,

    /// <summary><see cref="PipelineParallel.ZeroBubble"/>.</summary>
    ZeroBubble,
}

/// <summary>From a choice to the actions of a stage. Pure.</summary>
public static class PipelineSchedules
{
    /// <summary>The training schedule of stage <paramref name="stage"/>.</summary>
    /// <param name="numMicroBatches">Micro-batches of the step on this data-parallel rank, at least 1.</param>
    /// <exception cref="ArgumentException">The schedule cannot run in this shape.</exception>
    public static IReadOnlyList<PipelineAction> Build(PipelineScheduleKind kind, PipelineShape shape, int stage, int numMicroBatches)
    {
        if (shape is { NumStages: 1, NumChunks: 1 }) return NoPipelining.Build(numMicroBatches);
        if (kind == PipelineScheduleKind.Auto)
            kind = shape.NumChunks > 1 ? PipelineScheduleKind.Interleaved : PipelineScheduleKind.OneForwardOneBackward;
        if (shape.NumChunks > 1 && kind != PipelineScheduleKind.Interleaved)
            throw new ArgumentException($"Schedule {kind} has one chunk per stage; {shape.NumChunks} were given.");
        return kind switch
        {
            PipelineScheduleKind.GPipe => AllForwardAllBackward.Build(shape.NumStages, stage, numMicroBatches),
            PipelineScheduleKind.OneForwardOneBackward => OneForwardOneBackward.Build(shape.NumStages, stage, numMicroBatches),
            PipelineScheduleKind.Interleaved => InterleavedOneForwardOneBackward.Build(shape, numMicroBatches)[stage],
            PipelineScheduleKind.ZeroBubble => ZeroBubble.Build(shape.NumStages, numMicroBatches)[stage],
            _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "unknown schedule"),
        };
    }
}
