using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Compute.PipelineParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>
/// The model chunks of this rank as the pipeline interpreter sees them: keeps the saved activations of each micro-batch in flight and
/// sums the losses of the last stage.
/// </summary>
public sealed class GptPipelineStage : IPipelineStage, IDisposable
{
    private readonly IReadOnlyList<GptModel> chunks;
    private readonly Action<int> selectAccumulator;
    private readonly Tensor lossSum;
    private readonly Stack<Saved> free = [];
    private readonly Dictionary<(int MicroBatch, int Chunk), Saved> inFlight = [];
    private IReadOnlyList<ForwardContext> contexts = [];

    /// <param name="chunks">Model chunks of this rank.</param>
    /// <param name="selectAccumulator">Called with the index of a micro-batch before its forward and each half of its backward, all of which may add weight gradients.</param>
    public GptPipelineStage(IReadOnlyList<GptModel> chunks, Device device, Action<int> selectAccumulator)
    {
        (this.chunks, this.selectAccumulator) = (chunks, selectAccumulator);
        lossSum = zeros([], dtype: float64, device: device).DetachFromDisposeScope();
    }

    /// <summary>Bytes of saved activations right now (walks every store: for tests and reports, not for the step).</summary>
    public long SavedBytes => inFlight.Values.Sum(saved => saved.SizeBytes);

    /// <summary>Takes the micro-batches of one step; the contexts still belong to the caller.</summary>
    public void Begin(IReadOnlyList<ForwardContext> contexts)
    {
        this.contexts = contexts;
        lossSum.zero_();
    }

    /// <summary>Cross-entropy summed over the targets of all micro-batches so far: fp64 scalar on the device, 0 on all but the last stage.</summary>
    public Tensor LossSum => lossSum;

    /// <inheritdoc/>
    public Tensor? Forward(int microBatch, int chunk, Tensor? input)
    {
        var saved = Rent(contexts[microBatch]);
        inFlight.Add((microBatch, chunk), saved);
        selectAccumulator(microBatch);
        var output = chunks[chunk].ForwardStage(input, saved);
        if (chunks[chunk].Stage.HasHead) lossSum.add_(output);
        return output;
    }

    /// <inheritdoc/>
    public Tensor? BackwardInput(int microBatch, int chunk, Tensor? gradOutput)
    {
        selectAccumulator(microBatch);
        return chunks[chunk].BackwardInput(gradOutput, inFlight[(microBatch, chunk)]);
    }

    /// <inheritdoc/>
    public void BackwardWeight(int microBatch, int chunk)
    {
        selectAccumulator(microBatch);
        chunks[chunk].BackwardWeight(inFlight[(microBatch, chunk)]);
        Release(microBatch, chunk);
    }

    /// <inheritdoc/>
    public Tensor? Backward(int microBatch, int chunk, Tensor? gradOutput)
    {
        selectAccumulator(microBatch);
        var gradInput = chunks[chunk].Backward(gradOutput, inFlight[(microBatch, chunk)]);
        Release(microBatch, chunk);
        return gradInput;
    }

    /// <summary>Frees activations of a step that did not end, for example after a lost peer.</summary>
    public void Abandon()
    {
        foreach (var saved in inFlight.Values)
        {
            saved.Drop();
            free.Push(saved);
        }
        inFlight.Clear();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Abandon();
        lossSum.Dispose();
    }

    private void Release(int microBatch, int chunk)
    {
        inFlight.Remove((microBatch, chunk), out var saved);
        if (saved is not null) free.Push(saved);
    }

    private Saved Rent(ForwardContext context)
    {
        if (!free.TryPop(out var saved)) return new Saved(context);
        saved.Reset(context);
        return saved;
    }
}
