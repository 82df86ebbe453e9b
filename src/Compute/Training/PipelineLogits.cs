using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using Megatron.Compute.PipelineParallel;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>Logits of a model whose layers lie on several stages, on every rank of the pipeline: for verification.</summary>
public static class PipelineLogits
{
    /// <summary>
    /// Forward of one row through all stages; the last one broadcasts the logits over the pipeline group, and context-parallel ranks gather
    /// those of each other's tokens. Entered by all ranks.
    /// </summary>
    /// <param name="row">The whole row; with context parallelism its segments are multiples of 2·cp tokens.</param>
    /// <returns>[T, V] in the model dtype, in the dispose scope that is open.</returns>
    public static Tensor Of(ModelChunks model, MicroBatch row, ParallelState parallel, Device device)
    {
        using var scope = NewDisposeScope();
        var (pipeline, ranks) = (parallel.PipelineParallel, parallel.ContextParallel);
        var own = new ContextSplit(ranks.Rank, ranks.Size).Take(row);
        using var context = new ForwardContext(own, device, step: 0, isTraining: false, lossFactor: 1, auxiliaryLossFactor: 0) { WholeRow = row };
        var stage = new LogitsStage(model, context);
        var interpreter = new PipelineInterpreter(pipeline, model.Chunks.Count, model.Options.Dtype, device);
        interpreter.Run(ForwardOnly.Build(new PipelineShape(pipeline.Size, model.Chunks.Count), pipeline.Rank, 1), stage);
        var logits = stage.Logits ?? empty([own.NumTokens, model.Config.VocabSize], model.Options.Dtype, device);
        pipeline.Broadcast(logits, pipeline.Size - 1).Wait();
        if (ranks.Size == 1) return logits.MoveToOuterDisposeScope();
        var gathered = empty([row.NumTokens, model.Config.VocabSize], logits.dtype, device);
        ranks.AllGather(gathered, logits).Wait();
        return gathered.index_select(0, context.ZigZag.ToRow).MoveToOuterDisposeScope();
    }

    private sealed class LogitsStage(ModelChunks model, ForwardContext context) : IPipelineStage
    {
        /// <summary>Set on the last stage; belongs to the scope around the interpreter's.</summary>
        public Tensor? Logits { get; private set; }

        public Tensor? Forward(int microBatch, int chunk, Tensor? input)
        {
            var output = model.Chunks[chunk].ForwardLogits(input, new Saved(context));
            if (!model.Chunks[chunk].Stage.HasHead) return output;
            Logits = output.contiguous().MoveToOuterDisposeScope();
            return null;
        }

        public Tensor? BackwardInput(int microBatch, int chunk, Tensor? gradOutput) => throw new InvalidOperationException("A forward pass has no backward.");

        public void BackwardWeight(int microBatch, int chunk) => throw new InvalidOperationException("A forward pass has no backward.");
    }
}
