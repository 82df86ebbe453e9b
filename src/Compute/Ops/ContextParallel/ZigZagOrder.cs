using Megatron.Compute.Data;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>
/// The two orders of the tokens of a row that context-parallel ranks share, as index tensors: that of the row, and the ranks' tokens one
/// rank after another.
/// </summary>
/// <remarks>Shape letter: T tokens of the whole row.</remarks>
public sealed class ZigZagOrder : IDisposable
{
    /// <summary>[T] int64: for each token of the row its place in the ranks' order; <c>index_select</c> with it puts the row together.</summary>
    public Tensor ToRow { get; }

    /// <summary>[T] int64: for each token in the ranks' order its place in the row; <c>index_select</c> with it deals the row out.</summary>
    public Tensor ToRanks { get; }

    /// <param name="whole">The row; its segments are multiples of 2·cp tokens.</param>
    /// <param name="numRanks">cp.</param>
    /// <param name="device">Where the tensors go.</param>
    public ZigZagOrder(MicroBatch whole, int numRanks, Device device)
    {
        var split = new ContextSplit(0, numRanks);
        var (toRanks, toRow) = (new long[whole.NumTokens], new long[whole.NumTokens]);
        var next = 0;
        for (var rank = 0; rank < numRanks; rank++)
            foreach (var row in split.RowsOf(whole, rank))
            {
                toRow[row] = next;
                toRanks[next++] = row;
            }
        ToRow = tensor(toRow, int64, device).DetachFromDisposeScope();
        ToRanks = tensor(toRanks, int64, device).DetachFromDisposeScope();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        ToRow.Dispose();
        ToRanks.Dispose();
    }
}
