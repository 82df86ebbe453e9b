namespace Megatron.Compute.Ops;

/// <summary>Which implementation computes attention.</summary>
public enum AttentionBackend
{
    /// <summary>The fastest that supports dtype, device and dropout.</summary>
    Auto,

    /// <summary>libtorch's flash kernel; refuses what it cannot do.</summary>
    Flash,

    /// <summary>Matrix product, softmax, matrix product: works for every dtype and with dropout.</summary>
    Unfused,

    /// <summary>cuDNN: GPU only, one plan per segment length.</summary>
    Fused,
}

/// <summary>How context-parallel ranks reach the keys of each other's tokens.</summary>
public enum ContextExchange
{
    /// <summary>Keys and values go round the ring (<see cref="ContextParallel.RingAttention"/>): any number of heads, hidden behind the arithmetic.</summary>
    Ring,

    /// <summary>Tokens are exchanged for heads (<see cref="ContextParallel.UlyssesAttention"/>): the ranks divide heads and key/value heads.</summary>
    AllToAll,
}

/// <summary>How attention is computed; none of it changes the mathematics except the rounding.</summary>
public sealed record AttentionOptions
{
    public required AttentionBackend Backend { get; init; }

    /// <summary>Softmax of 16-bit scores in fp32. Implied by <see cref="QueryKeyLayerScaling"/>.</summary>
    public required bool SoftmaxInFp32 { get; init; }

    /// <summary>Divides the scores by the layer number before they are rounded to 16 bits and multiplies them back in fp32 (fp16 range).</summary>
    public required bool QueryKeyLayerScaling { get; init; }

    /// <summary>Read where a context-parallel group has more than one rank.</summary>
    public ContextExchange ContextExchange { get; init; } = ContextExchange.Ring;
}

/// <summary>The local shape of one layer's attention.</summary>
/// <param name="NumHeads">Query heads of this rank.</param>
/// <param name="NumGroups">Key/value heads of this rank; divides <paramref name="NumHeads"/>.</param>
/// <param name="HeadDim">Channels of a head.</param>
/// <param name="FirstHead">Global index of this rank's first query head, a coordinate of dropout.</param>
/// <param name="LayerIndex">0-based global layer.</param>
public sealed record AttentionShape(int NumHeads, int NumGroups, int HeadDim, int FirstHead, int LayerIndex)
{
    /// <summary>Query heads that share a key/value head.</summary>
    public int HeadsPerGroup => NumHeads / NumGroups;

    /// <summary>1 / sqrt(HeadDim).</summary>
    public double Scale => 1.0 / Math.Sqrt(HeadDim);
}

/// <summary>Consecutive segments of equal length: <c>BatchSize</c> samples of <c>SeqLen</c> tokens from token <c>Start</c> on.</summary>
public readonly record struct SegmentGroup(int Start, int BatchSize, int SeqLen)
{
    /// <summary>Tokens of the group.</summary>
    public int NumTokens => BatchSize * SeqLen;
}
