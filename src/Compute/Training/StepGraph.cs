using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Native;
using Megatron.Compute.Ops;

namespace Megatron.Compute.Training;

/// <summary>
/// Forward and backward of a global batch as one CUDA graph (<c>--cuda_graph</c>): for small models, whose kernels are shorter than the time the host
/// takes to launch them. The first steps run as ever, on the stream that is then recorded; later ones copy their tokens to where the first batch's
/// were and start the recorded work.
/// </summary>
/// <remarks>The recorded kernels hold shapes and host numbers of the first batch: all batches must have its rows, sample borders and padding.</remarks>
internal sealed class StepGraph : IDisposable
{
    private const int WarmupSteps = 2; // libraries make plans and workspaces, kernels are compiled

    private readonly CudaStream stream;
    private readonly nint before;
    private readonly nint after;
    private ForwardContext[]? contexts;
    private CudaGraph? graph;
    private int numSteps;

    /// <param name="device">Index of the GPU.</param>
    public StepGraph(int device)
    {
        stream = new CudaStream(device);
        (before, after) = (stream.CreateEvent(), stream.CreateEvent());
    }

    /// <summary>The contexts that the recorded work reads, filled with this batch's tokens.</summary>
    /// <param name="batchIndex">For messages.</param>
    /// <param name="parts">Each micro-batch's tokens and loss factor.</param>
    /// <param name="make">Makes a context, of the first batch.</param>
    /// <exception cref="ConfigException">GRAPH001: the batch has another shape than the first one.</exception>
    public IReadOnlyList<ForwardContext> Fill(long batchIndex, IReadOnlyList<(MicroBatch Tokens, double LossFactor)> parts, Func<int, ForwardContext> make)
    {
        if (contexts is null) return contexts = [.. Enumerable.Range(0, parts.Count).Select(make)];
        var fits = parts.Count == contexts.Length;
        for (var m = 0; fits && m < parts.Count; m++) fits = contexts[m].Batch.HasShapeOf(parts[m].Tokens);
        if (!fits)
            throw new ConfigException("GRAPH001", $"cuda_graph replays one shape of batch, and batch {batchIndex} has other row lengths, sample borders or micro-batches than the first; "
                + "leave cuda_graph out, or give data of one length.");
        for (var m = 0; m < parts.Count; m++) contexts[m].Refill(parts[m].Tokens, parts[m].LossFactor);
        return contexts;
    }

    /// <summary>Runs <paramref name="work"/>, which reads the contexts, or what was recorded of it.</summary>
    public void Run(Action work)
    {
        if (numSteps++ < WarmupSteps)
        {
            stream.FollowCurrent(before);
            using (stream.MakeCurrent()) work();
            stream.Record(after);
            stream.CurrentFollows(after);
            return;
        }
        graph ??= CudaGraph.Record(stream, work);
        graph.Replay();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        graph?.Dispose();
        foreach (var context in contexts ?? []) context.Dispose();
        stream.DestroyEvent(before);
        stream.DestroyEvent(after);
        stream.Dispose();
    }
}
