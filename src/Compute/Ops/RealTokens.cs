using Megatron.Compute.Data;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// The tokens of a row that are not padding, and the sequence each belongs to. What must not see padding (routing, balance losses) works
/// on these tokens alone.
/// </summary>
/// <remarks>Shape letter: N real tokens.</remarks>
public sealed class RealTokens : IDisposable
{
    /// <summary>[N] int64 index in the row of each real token, ascending; null when no token is padding.</summary>
    public Tensor? Index { get; }

    /// <summary>[N] int64 number of each real token's sequence, counted over sequences that have real tokens.</summary>
    public Tensor Sequence { get; }

    /// <summary>Real tokens of each sequence, none of them 0.</summary>
    public IReadOnlyList<int> SequenceLengths { get; }

    /// <summary>N.</summary>
    public int Count { get; }

    /// <param name="batch">The row.</param>
    /// <param name="device">Where the tensors go.</param>
    public RealTokens(MicroBatch batch, Device device)
    {
        var (index, sequence, lengths) = (new List<long>(batch.NumTokens), new List<long>(batch.NumTokens), new List<int>());
        var end = batch.NumTokens - batch.NumPaddingTokens;
        for (var segment = 0; segment + 1 < batch.CuSeqLens.Length; segment++)
        {
            var first = batch.CuSeqLens[segment];
            var length = Math.Min(batch.CuSeqLens[segment + 1] - (batch.SegmentPadding?[segment] ?? 0), end) - first;
            if (length <= 0) continue;
            for (var i = 0; i < length; i++)
            {
                index.Add(first + i);
                sequence.Add(lengths.Count);
            }
            lengths.Add(length);
        }
        (Count, SequenceLengths) = (index.Count, lengths);
        Sequence = tensor(sequence.ToArray(), int64, device).DetachFromDisposeScope();
        if (Count < batch.NumTokens) Index = tensor(index.ToArray(), int64, device).DetachFromDisposeScope();
    }

    /// <summary>The real rows of [T, H]: a fresh tensor, or an alias when all are real.</summary>
    public Tensor Select(Tensor x_TH) => Index is null ? x_TH.alias() : x_TH.index_select(0, Index);

    /// <summary>Puts [N, H] back into [T, H] with zeros at padding: a fresh tensor, or an alias when all are real.</summary>
    /// <param name="numTokens">T.</param>
    public Tensor Scatter(Tensor x_NH, long numTokens) =>
        Index is null ? x_NH.alias() : zeros([numTokens, .. x_NH.shape[1..]], x_NH.dtype, x_NH.device).index_copy_(0, Index, x_NH);

    /// <inheritdoc/>
    public void Dispose()
    {
        Index?.Dispose();
        Sequence.Dispose();
    }
}
