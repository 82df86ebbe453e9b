using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>
/// A rectangular block of one Hugging Face tensor that lies row-major and contiguous inside a <see cref="Parameter"/>. A fused
/// parameter (q, k and v in one matrix; gate and up; stacked experts) has several blocks, a plain one has one. Checkpoint slices are
/// cut out of these blocks (DESIGN D11).
/// </summary>
/// <param name="Name">Hugging Face name, e.g. <c>model.layers.0.self_attn.q_proj.weight</c>.</param>
/// <param name="GlobalShape">Shape of the whole Hugging Face tensor.</param>
/// <param name="Offset">Start of the block in that tensor, per dimension.</param>
/// <param name="Shape">Extent of the block, per dimension.</param>
/// <param name="FlatOffset">First element of the block in the parameter's row-major order.</param>
public sealed record TensorBlock(string Name, long[] GlobalShape, long[] Offset, long[] Shape, long FlatOffset)
{
    /// <summary>Elements of the block.</summary>
    public long NumElements => Shape.Aggregate(1L, (product, extent) => product * extent);

    /// <summary>A block that is a whole Hugging Face tensor.</summary>
    public static TensorBlock Whole(string name, params long[] shape) => new(name, shape, new long[shape.Length], shape, 0);
}

/// <summary>
/// A trainable weight of this rank: model-dtype data plus, once training is set up, a view of the fp32 main gradient into which
/// <see cref="ILayer.BackwardWeight"/> adds. Not an autograd leaf.
/// </summary>
public sealed class Parameter : IDisposable
{
    private Tensor data;
    private CollectiveWork? arriving;

    /// <summary>Name of this rank's tensor, unique in the model (for fused weights not a Hugging Face name).</summary>
    public string Name { get; }

    /// <summary>
    /// Local data in the model dtype; detached from every dispose scope. Its storage is moved into a flat buffer by <see cref="Rebind"/> when
    /// training is set up. The first read after <see cref="ReadAfter"/> waits for that operation.
    /// </summary>
    /// <exception cref="RankFaultException">The operation that brings the data failed.</exception>
    public Tensor Data
    {
        get
        {
            if (arriving is null) return data;
            var work = arriving;
            arriving = null;
            work.Wait();
            return data;
        }
    }

    /// <summary>
    /// Where the data lies in Hugging Face tensors; covers the whole parameter but padding at its end, without gaps, in ascending FlatOffset.
    /// </summary>
    public IReadOnlyList<TensorBlock> Blocks { get; }

    public ParameterTraits Traits { get; }

    /// <summary>Slot in the rank's <see cref="GradientBuffer"/>; null for a model that is not trained (inference, export).</summary>
    public GradientSlot? GradientSlot { get; set; }

    /// <summary>The fp32 main gradient, same shape as <see cref="Data"/>.</summary>
    /// <exception cref="InvalidOperationException">The parameter has no gradient slot.</exception>
    public Tensor MainGrad => Slot.Tensor;

    /// <summary>The slot.</summary>
    /// <exception cref="InvalidOperationException">The parameter has no gradient slot.</exception>
    public GradientSlot Slot => GradientSlot ?? throw new InvalidOperationException($"{Name} has no gradient buffer.");

    /// <summary>Elements of this rank's tensor.</summary>
    public long NumElements => data.numel();

    /// <summary>Shape of this rank's tensor.</summary>
    public long[] Shape => data.shape;

    /// <param name="numPaddingElements">Elements after the last block: 0, with gradients of 0, they stay 0 and reach no checkpoint.</param>
    public Parameter(string name, Tensor data, IReadOnlyList<TensorBlock> blocks, ParameterTraits traits, long numPaddingElements = 0)
    {
        (Name, this.data, Blocks, Traits) = (name, data.DetachFromDisposeScope(), blocks, traits);
        if (blocks.Sum(block => block.NumElements) + numPaddingElements != data.numel())
            throw new InvalidOperationException(
                $"The blocks of {name} hold {blocks.Sum(block => block.NumElements)} elements and {numPaddingElements} pad, the tensor has {data.numel()}.");
    }

    /// <summary>Replaces the data by <paramref name="view"/> (same shape and dtype, for example a view of a flat buffer), copying the values.</summary>
    public void Rebind(Tensor view)
    {
        view.copy_(Data);
        data.Dispose();
        data = view.DetachFromDisposeScope();
    }

    /// <summary>The data are being brought by <paramref name="work"/>, which may serve several parameters: readers wait for it.</summary>
    public void ReadAfter(CollectiveWork work) => arriving = work;

    /// <summary>
    /// The backward of one micro-batch has added all that it adds to the main gradient. Called once for each micro-batch by the layer that
    /// owns the parameter, at the end of its BackwardWeight; starts the overlapped reduction after the last one.
    /// </summary>
    public void CompleteGradient()
    {
        if (GradientSlot is not { Completed: { } completed } slot) return;
        slot.Fill();
        completed();
    }

    /// <inheritdoc/>
    public void Dispose() => data.Dispose();
}

/// <summary>How a parameter takes part in decay, norms and reductions.</summary>
public sealed record ParameterTraits
{
    /// <summary>Weight decay applies: tensors of two or more dimensions that are not biases (numerics 3.8).</summary>
    public required bool Decays { get; init; }

    /// <summary>Split over the tensor-parallel group; otherwise replicated there and counted once in norms.</summary>
    public bool IsTensorSharded { get; init; }

    /// <summary>
    /// Replicated over TP, but its gradient on one rank covers that rank's tokens (norms under sequence parallelism) or heads (q/k norms) only:
    /// it is summed over the TP group.
    /// </summary>
    public bool IsSequenceParallel { get; init; }

    /// <summary>Belongs to experts: reduced over the expert-data-parallel group.</summary>
    public bool IsExpert { get; init; }

    /// <summary>First and last pipeline stage hold a copy each: its gradient is summed over the embedding group.</summary>
    public bool IsTied { get; init; }

    /// <summary>A copy of a tied weight that another pipeline stage owns: left out of norms and checkpoints.</summary>
    public bool IsSharedDuplicate { get; init; }
}
