using Megatron.Compute.Configuration;
using Megatron.Compute.Data;
using Megatron.Compute.Distributed;
using Megatron.Compute.Moe;
using Megatron.Compute.Ops;
using Megatron.Compute.TensorParallel;
using Megatron.Compute.Transformer;
using static TorchSharp.torch;

namespace Megatron.Compute.Models;

/// <summary>
/// The part of a decoder-only transformer that one pipeline stage (or one chunk of it) owns: embedding if it is the first, a range of
/// layers, final norm and head if it is the last. Weights are uninitialised after construction: call
/// <see cref="ModelInitializer.Initialize"/> or load them through <see cref="Parameter.Blocks"/>.
/// </summary>
/// <remarks>
/// Order of calls for one micro-batch: <see cref="ForwardStage"/>, <see cref="BackwardInput"/>, <see cref="BackwardWeight"/>, with one
/// <see cref="Saved"/> of its own, on the rank's thread and inside a dispose scope of the caller. Shape letters: T tokens of the row, t this
/// rank's tokens (T / tp under sequence parallelism, else T), H hidden, V vocabulary.
/// </remarks>
public sealed class GptModel : IDisposable
{
    private const int Embedding = 0, EmbeddingDropout = 1, Layers = 2, FinalNorm = 3, Head = 4; // children

    private readonly SequenceParallelRegion region;
    private readonly RotaryEmbedding rotary;
    private readonly VocabParallelEmbedding? embedding;
    private readonly Dropout embeddingDropout;
    private readonly SequentialLayers layers;
    private readonly RmsNormLayer? finalNorm;
    private readonly OutputHead? head;

    public ModelConfig Config { get; }

    public ModelOptions Options { get; }

    public StageLayout Stage { get; }

    /// <summary>This rank's weights in a fixed order: embedding, layers, final norm, head. A tied head is not listed twice.</summary>
    public IReadOnlyList<Parameter> Parameters { get; }

    /// <summary>The weight that a tied embedding shares between the first and the last stage; null when untied or not on this stage.</summary>
    public Parameter? TiedWeight { get; }

    /// <summary>What the routers of this stage saw since it was zeroed; null for an architecture without experts.</summary>
    public RoutingStatistics? Routing { get; }

    /// <exception cref="ConfigException">The layout does not divide the architecture, or the architecture needs a missing block.</exception>
    public GptModel(ModelConfig config, ModelOptions options, ParallelState parallel, StageLayout stage)
    {
        (Config, Options, Stage) = (config, options, stage);
        region = new SequenceParallelRegion(parallel.TensorParallel, parallel.SequenceParallel, options.TensorOverlapChunks);
        rotary = new RotaryEmbedding(config.Rotary, config.KvChannels, config.MaxPositionEmbeddings, options.Dtype, options.Device);
        if (config.Moe is { } moe) Routing = new RoutingStatistics(config.NumLayers, moe.NumExperts, options.Device);
        var context = new LayerContext
        {
            Config = config, Parallel = parallel, Region = region, Weights = new ParameterFactory(options.Dtype, options.Device), Rotary = rotary,
            Attention = options.Attention, Products = options.Products, Recompute = options.Recompute, Seed = options.Seed, Moe = options.Moe, Routing = Routing,
        };
        var shard = new VocabularyShard(config.VocabSize, parallel.TensorParallel);
        if (stage.HasEmbedding)
            embedding = new VocabParallelEmbedding(CreateVocabularyWeight(context, shard, HfTensorNames.Embedding, isDuplicate: false), shard, region);
        embeddingDropout = new Dropout(config.HiddenDropout, options.Seed, layerIndex: 0, DropoutStream.Embedding);
        layers = CreateLayers(context, stage);
        if (stage.HasHead)
        {
            finalNorm = new RmsNormLayer(
                context.CreateReplicatedVector(HfTensorNames.FinalNorm, config.HiddenSize, isPartial: region.IsActive), config.NormEpsilon);
            head = new OutputHead(CreateHeadWeight(context, shard), shard, region, options.Products, options.HeadChunkTokens);
        }
        Parameters = CollectParameters();
        TiedWeight = config.TieWordEmbeddings ? embedding?.Weight ?? head?.Weight : null;
    }

    /// <summary>
    /// Runs this stage on the micro-batch of <see cref="Saved.Context"/>. On the last stage the result is the loss sum: Σ weight ·
    /// cross-entropy over the micro-batch, a scalar in fp32 (fp64 for an fp64 model), unscaled; the loss factor enters the gradient only.
    /// </summary>
    /// <param name="hidden">[t, H] from the previous stage; null on the first.</param>
    /// <returns>[t, H] for the next stage, or the loss sum.</returns>
    /// <exception cref="ConfigException">A sample is longer than the model's positions.</exception>
    public Tensor ForwardStage(Tensor? hidden, Saved saved)
    {
        using var scope = NewDisposeScope();
        var output = ForwardHidden(hidden, saved);
        if (head is not null) output = head.Forward(output, saved.Child(Head));
        if (!saved.Context.IsTraining) saved.Drop();
        return output.MoveToOuterDisposeScope();
    }

    /// <summary>Gradient with respect to the stage's input.</summary>
    /// <param name="gradHidden">[t, H] from the next stage; null on the last, whose gradient starts at the loss.</param>
    /// <returns>[t, H] for the previous stage; null on the first.</returns>
    public Tensor? BackwardInput(Tensor? gradHidden, Saved saved)
    {
        using var scope = NewDisposeScope();
        var gradInput = layers.BackwardInput(BackwardInputOfHead(gradHidden, saved), saved.Child(Layers));
        return BackwardInputOfEmbedding(gradInput, saved)?.MoveToOuterDisposeScope();
    }

    /// <summary>Adds the micro-batch's weight gradients to the main gradients and empties <paramref name="saved"/>.</summary>
    public void BackwardWeight(Saved saved)
    {
        BackwardWeightOfHead(saved);
        layers.BackwardWeight(saved.Child(Layers));
        BackwardWeightOfEmbedding(saved);
    }

    /// <summary>Both halves, layer by layer: see <see cref="SequentialLayers.Backward(Tensor, Saved)"/>.</summary>
    /// <inheritdoc cref="BackwardInput"/>
    public Tensor? Backward(Tensor? gradHidden, Saved saved)
    {
        using var scope = NewDisposeScope();
        var gradOutput = BackwardInputOfHead(gradHidden, saved);
        BackwardWeightOfHead(saved);
        var gradInput = BackwardInputOfEmbedding(layers.Backward(gradOutput, saved.Child(Layers)), saved);
        BackwardWeightOfEmbedding(saved);
        return gradInput?.MoveToOuterDisposeScope();
    }

    /// <summary>Logits of every position, for verification and inference; keeps nothing. On a stage without the head, its output.</summary>
    /// <param name="hidden">As in <see cref="ForwardStage"/>.</param>
    /// <param name="saved">Its context must have IsTraining false.</param>
    /// <returns>[T, V] in the model dtype on every rank of the tensor-parallel group, or [t, H].</returns>
    public Tensor ForwardLogits(Tensor? hidden, Saved saved)
    {
        using var scope = NewDisposeScope();
        var output = ForwardHidden(hidden, saved);
        saved.Drop();
        return (head is null ? output : head.Logits(output)).MoveToOuterDisposeScope();
    }

    /// <summary>Logits of the last token of each segment, for generation; keeps nothing. The whole model on one rank.</summary>
    /// <param name="saved">Its context must have IsTraining false and a row without padding.</param>
    /// <returns>[segments, V] in the model dtype.</returns>
    public Tensor ForwardLastLogits(Saved saved)
    {
        using var scope = NewDisposeScope();
        var segments = saved.Context.CuSeqLens.shape[0] - 1;
        var hidden_TH = ForwardHidden(null, saved);
        saved.Drop();
        var last_SH = hidden_TH.index_select(0, saved.Context.CuSeqLens.narrow(0, 1, segments).sub(1));
        return (head ?? throw new InvalidOperationException("Only a stage with the head has logits.")).Logits(last_SH).MoveToOuterDisposeScope();
    }

    /// <summary>Shape of the activation that crosses a stage border for <paramref name="batch"/>: [t, H].</summary>
    public long[] BoundaryShape(MicroBatch batch) => [region.IsActive ? batch.NumTokens / region.Group.Size : batch.NumTokens, Config.HiddenSize];

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var parameter in Parameters) parameter.Dispose();
        Routing?.Dispose();
        rotary.Dispose();
    }

    private Tensor ForwardHidden(Tensor? hidden, Saved saved)
    {
        if (saved.Context.WholeRow.MaxSeqLen is var longest && longest > Config.MaxPositionEmbeddings)
            throw new ConfigException(
                "MODEL022",
                $"A sample has {longest} tokens, but the model has max_position_embeddings = {Config.MaxPositionEmbeddings}; choose a smaller max_length.");
        if (embedding is not null)
        {
            var embedded = embedding.Forward(saved.Context.TokenIds);
            hidden = embeddingDropout.Forward(embedded, region.FirstToken(embedded.shape[0]), saved.Child(EmbeddingDropout));
        }
        if (hidden is null) throw new InvalidOperationException("A stage without the embedding needs the hidden states of the stage before it.");
        var output = layers.Forward(hidden, saved.Child(Layers));
        return finalNorm is null ? output : finalNorm.Forward(output, saved.Child(FinalNorm));
    }

    /// <returns>Gradient of the layers' output.</returns>
    private Tensor BackwardInputOfHead(Tensor? gradHidden, Saved saved)
    {
        if (head is not null && finalNorm is not null) return finalNorm.BackwardInput(head.BackwardInput(saved.Child(Head)), saved.Child(FinalNorm));
        return gradHidden ?? throw new InvalidOperationException("A stage without the head needs the gradient of its output.");
    }

    private void BackwardWeightOfHead(Saved saved)
    {
        if (head is not null && !ReferenceEquals(head.Weight, embedding?.Weight)) head.Weight.CompleteGradient(); // added to in the forward
        if (finalNorm is null) return;
        finalNorm.BackwardWeight(saved.Child(FinalNorm));
        foreach (var parameter in finalNorm.Parameters) parameter.CompleteGradient();
    }

    /// <returns>What the stage before gets; null when there is none.</returns>
    private Tensor? BackwardInputOfEmbedding(Tensor gradInput, Saved saved)
    {
        if (embedding is null) return gradInput;
        embedding.BackwardInput(embeddingDropout.Backward(gradInput, saved.Child(EmbeddingDropout)), saved.Child(Embedding));
        return null;
    }

    private void BackwardWeightOfEmbedding(Saved saved)
    {
        if (embedding is null) return;
        embedding.BackwardWeight(saved.Child(Embedding));
        embedding.Weight.CompleteGradient();
    }

    private static SequentialLayers CreateLayers(LayerContext context, StageLayout stage)
    {
        var all = new List<ILayer>();
        for (var i = stage.FirstLayer; i < stage.EndLayer; i++) all.Add(new TransformerLayer(context, HfTensorNames.Layer(i), i));
        var recompute = context.Recompute;
        if (recompute.Granularity != RecomputeGranularity.Full) return new SequentialLayers(all);
        return new SequentialLayers(recompute.Method == RecomputeMethod.Uniform
            ? [.. all.Chunk(recompute.NumLayers).Select(unit => new CheckpointedBlock(new SequentialLayers(unit)))]
            : [.. all.Select((layer, index) => index < recompute.NumLayers ? new CheckpointedBlock(layer) : layer)]);
    }

    private Parameter CreateHeadWeight(LayerContext context, VocabularyShard shard)
    {
        if (!Config.TieWordEmbeddings) return CreateVocabularyWeight(context, shard, HfTensorNames.Head, isDuplicate: false);
        return embedding?.Weight ?? CreateVocabularyWeight(context, shard, HfTensorNames.Embedding, isDuplicate: true);
    }

    private static Parameter CreateVocabularyWeight(LayerContext context, VocabularyShard shard, string name, bool isDuplicate)
    {
        var hidden = context.Config.HiddenSize;
        TensorBlock[] blocks = shard.NumTokenRows == 0 ? [] : [new(name, [shard.VocabSize, hidden], [shard.FirstRow, 0], [shard.NumTokenRows, hidden], 0)];
        return context.Weights.CreatePadded(
            name, [shard.NumRows, hidden], blocks,
            new ParameterTraits { Decays = true, IsTensorSharded = true, IsTied = context.Config.TieWordEmbeddings, IsSharedDuplicate = isDuplicate });
    }

    private List<Parameter> CollectParameters()
    {
        var result = new List<Parameter>();
        if (embedding is not null) result.Add(embedding.Weight);
        result.AddRange(layers.Parameters);
        if (finalNorm is not null) result.AddRange(finalNorm.Parameters);
        if (head is not null && !ReferenceEquals(head.Weight, embedding?.Weight)) result.Add(head.Weight);
        return result;
    }
}
