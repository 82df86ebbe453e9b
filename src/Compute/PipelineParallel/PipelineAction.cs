namespace Megatron.Compute.PipelineParallel;

/// <summary>What a pipeline rank does at one point of its schedule.</summary>
public enum PipelineActionKind
{
    /// <summary>Runs the chunk's layers on a micro-batch and saves activations.</summary>
    Forward,

    /// <summary>Gradient with respect to the chunk's input.</summary>
    BackwardInput,

    /// <summary>Weight gradients; frees the micro-batch's activations.</summary>
    BackwardWeight,

    /// <summary>Sends activations to the next virtual stage.</summary>
    SendForward,

    /// <summary>Receives activations from the previous virtual stage.</summary>
    ReceiveForward,

    /// <summary>Sends the input gradient to the previous virtual stage.</summary>
    SendBackward,

    /// <summary>Receives the output gradient from the next virtual stage.</summary>
    ReceiveBackward,
}

/// <summary>
/// One entry of a schedule: a schedule is a pure function from (stages, chunks, micro-batches, rank) to a list of these (DESIGN D7).
/// </summary>
/// <param name="Kind">What to do.</param>
/// <param name="MicroBatch">0-based micro-batch of the step.</param>
/// <param name="Chunk">0-based model chunk of this rank (0 without virtual pipelining).</param>
public readonly record struct PipelineAction(PipelineActionKind Kind, int MicroBatch, int Chunk)
{
    /// <summary>True for the two halves of one backward with nothing between them.</summary>
    public bool IsFollowedByItsWeightHalf(PipelineAction next) =>
        Kind == PipelineActionKind.BackwardInput && next == this with { Kind = PipelineActionKind.BackwardWeight };
}
