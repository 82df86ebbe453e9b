using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>What a slice of the training state is, besides the weights in the training dtype (those stand in <c>model*.safetensors</c>).</summary>
public enum StateKind
{
    /// <summary>fp32 weights.</summary>
    Master,

    /// <summary>First moment of Adam.</summary>
    ExpAvg,

    /// <summary>Second moment of Adam.</summary>
    ExpAvgSq,

    /// <summary>Momentum of SGD.</summary>
    Momentum,
}

/// <summary>
/// A slice of the training state in memory: elements [Begin, End) of a block of a Hugging Face tensor, row-major inside the block
/// (DESIGN D11). Saving reads <paramref name="Values"/>, loading fills it.
/// </summary>
/// <param name="Block">The block of the Hugging Face tensor.</param>
/// <param name="Kind">What the values are.</param>
/// <param name="Begin">First element, counted in the block.</param>
/// <param name="End">Element after the last.</param>
/// <param name="Values">[End - Begin], 1-D, any device: a view that belongs to the caller's dispose scope.</param>
public sealed record StateSlice(TensorBlock Block, StateKind Kind, long Begin, long End, Tensor Values)
{
    internal BlockRange Range => new(Block.Offset, Block.Shape, Begin, End);

    /// <summary>
    /// Cuts a flat range of a parameter along its blocks: a fused parameter gives one slice for each block that the range touches.
    /// </summary>
    /// <param name="blocks">Blocks of the parameter, in ascending flat offset.</param>
    /// <param name="kind">What the values are.</param>
    /// <param name="begin">First element of the range, row-major in the parameter.</param>
    /// <param name="values">[end - begin], 1-D: the values of the range. The slices hold views of it.</param>
    public static IEnumerable<StateSlice> Cut(IReadOnlyList<TensorBlock> blocks, StateKind kind, long begin, Tensor values)
    {
        var end = begin + values.numel();
        foreach (var block in blocks)
        {
            var first = Math.Max(begin, block.FlatOffset);
            var last = Math.Min(end, block.FlatOffset + block.NumElements);
            if (first < last)
                yield return new StateSlice(block, kind, first - block.FlatOffset, last - block.FlatOffset, values.narrow(0, first - begin, last - first));
        }
    }

    /// <summary>
    /// All slices of an optimizer's state, in buffer order. The views belong to the dispose scope that is open.
    /// </summary>
    /// <param name="state">The ranges that this rank owns, <see cref="MixedPrecisionOptimizer.State"/>.</param>
    /// <param name="withDuplicates">Second copies of tied weights too: they are loaded like the first, and never saved.</param>
    public static IReadOnlyList<StateSlice> OfOptimizer(IReadOnlyList<OptimizerStateRange> state, bool withDuplicates)
    {
        var slices = new List<StateSlice>();
        foreach (var range in state.Where(range => withDuplicates || !range.Parameter.Traits.IsSharedDuplicate))
        {
            var blocks = range.Parameter.Blocks;
            slices.AddRange(Cut(blocks, StateKind.Master, range.Range.Begin, range.Master));
            slices.AddRange(Cut(blocks, range.ExpAvgSq is null ? StateKind.Momentum : StateKind.ExpAvg, range.Range.Begin, range.ExpAvg));
            if (range.ExpAvgSq is { } expAvgSq) slices.AddRange(Cut(blocks, StateKind.ExpAvgSq, range.Range.Begin, expAvgSq));
        }
        return slices;
    }
}

/// <summary>A block of a weight in the training dtype, to be written or filled.</summary>
/// <param name="Block">Where it lies in the Hugging Face tensor.</param>
/// <param name="Values">As many elements as the block, in its row-major order; any device.</param>
public sealed record WeightBlock(TensorBlock Block, Tensor Values)
{
    /// <summary>The blocks of parameters. The views belong to the dispose scope that is open.</summary>
    /// <param name="parameters">Parameters of this rank.</param>
    /// <param name="withDuplicates">Second copies of tied weights too: they are loaded like the first, and never saved.</param>
    public static IReadOnlyList<WeightBlock> OfParameters(IEnumerable<Parameter> parameters, bool withDuplicates)
    {
        var blocks = new List<WeightBlock>();
        foreach (var parameter in parameters.Where(parameter => withDuplicates || !parameter.Traits.IsSharedDuplicate))
        {
            var flat = parameter.Data.view(-1);
            blocks.AddRange(parameter.Blocks.Select(block => new WeightBlock(block, flat.narrow(0, block.FlatOffset, block.NumElements))));
        }
        return blocks;
    }
}
