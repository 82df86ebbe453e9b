using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Compute.Transformer;

namespace Megatron.Compute.Tests.Training;

/// <summary>
/// Bytes that each rank sends in one step, by group and operation, against the formulas that stand at <see cref="TransformerLayer"/>,
/// <c>OutputHead</c>, <c>VocabParallelEmbedding</c>, <c>RingAttention</c>, <c>UlyssesAttention</c>, <c>PipelineInterpreter</c>, <c>GradientReducer</c> and
/// <see cref="MixedPrecisionOptimizer.Step"/>. Every group is compared whole: an operation that no formula knows fails the test.
/// </summary>
public sealed class CommunicationVolumeTests
{
    public static TheoryData<string> Names => [.. cases.Select(entry => entry.Name)];

    private static readonly OptimizerOptions sharded = new TrainerCase().Optimizer with { UseDistributedOptimizer = true };

    private static readonly RecomputeOptions whole = new() { Granularity = RecomputeGranularity.Full, Method = RecomputeMethod.Uniform, NumLayers = 1 };

    private static readonly ModelConfig experts = new TrainerCase().Model with
    {
        Moe = new MoeConfig { NumExperts = 4, FfnHiddenSize = 12, TopK = 2, PreSoftmax = true, SharedExpertFfnHiddenSize = 16 },
    };

    private static readonly (string Name, TrainerCase Case)[] cases =
    [
        ("one rank", new TrainerCase()),
        ("dp2", new TrainerCase { Ranks = 2 }),
        ("dp4 zero-1", new TrainerCase { Ranks = 4, Optimizer = sharded, BucketElements = 3_000 }),
        ("dp4 zero-1 overlapped", new TrainerCase
        {
            Ranks = 4, BucketElements = 3_000, Optimizer = sharded with { OverlapGradReduce = true, OverlapParamGather = true },
        }),
        ("tp2", new TrainerCase { Ranks = 2, Tensor = 2 }),
        ("tp2+sp", new TrainerCase { Ranks = 2, Tensor = 2, SequenceParallel = true }),
        ("tp2+sp overlapped", new TrainerCase { Ranks = 2, Tensor = 2, SequenceParallel = true, TensorOverlapChunks = 4 }),
        ("tp2 recompute", new TrainerCase { Ranks = 2, Tensor = 2, Recompute = whole }),
        ("tp2+sp recompute", new TrainerCase { Ranks = 2, Tensor = 2, SequenceParallel = true, Recompute = whole }),
        ("pp2", new TrainerCase { Ranks = 2, Pipeline = 2 }),
        ("pp4", new TrainerCase { Ranks = 4, Pipeline = 4 }),
        ("pp2 x vp2", new TrainerCase { Ranks = 2, Pipeline = 2, Chunks = 2 }),
        ("pp2 zero bubble", new TrainerCase { Ranks = 2, Pipeline = 2, Schedule = Megatron.Compute.PipelineParallel.PipelineScheduleKind.ZeroBubble }),
        ("tp2+sp x pp2 x dp2 zero-1", new TrainerCase
        {
            Ranks = 8, Tensor = 2, SequenceParallel = true, Pipeline = 2, Optimizer = sharded, BucketElements = 3_000,
        }),
        ("cp4 ring", new TrainerCase { Ranks = 4, Context = 4 }),
        ("cp2 all-to-all", new TrainerCase { Ranks = 2, Context = 2, Exchange = ContextExchange.AllToAll }),
        ("tp2+sp x cp2 x dp2 zero-1", new TrainerCase
        {
            Ranks = 8, Tensor = 2, SequenceParallel = true, Context = 2, Optimizer = sharded, BucketElements = 3_000,
        }),
        ("ep2", new TrainerCase { Ranks = 2, Expert = 2, Model = experts }),
        ("ep2 x dp4 zero-1", new TrainerCase { Ranks = 4, Expert = 2, Model = experts, Optimizer = sharded, BucketElements = 3_000 }),
        ("ep2 x pp2 x dp2", new TrainerCase { Ranks = 4, Expert = 2, Pipeline = 2, Model = experts }),
    ];

    [Theory, MemberData(nameof(Names))]
    public void TrainStep_Layout_SendsWhatTheFormulasSay(string name)
    {
        var layout = cases.Single(entry => entry.Name == name).Case;
        layout.Run(rank =>
        {
            foreach (var group in Groups(rank.Parallel)) group.Volume.Reset();
            rank.Trainer.TrainStep(rank.Batch(0), 1e-2);
            rank.GatherWeightsHere();
            var expected = Expected(rank);
            foreach (var group in Groups(rank.Parallel))
            {
                // What a layer exchanges depends on its routing: ExpertParallelTests compares it with the formula, rank by rank.
                if (group == rank.Parallel.ExpertParallel && layout.Expert > 1)
                {
                    Assert.Equal(["all_to_all"], group.Volume.BytesByOperation.Keys);
                    continue;
                }
                var formula = expected.Where(entry => entry.Key.Group == group.Name && entry.Value > 0).ToDictionary(entry => entry.Key.Operation, entry => entry.Value);
                Assert.Equal(formula.OrderBy(entry => entry.Key), group.Volume.BytesByOperation.OrderBy(entry => entry.Key));
            }
        });
    }

    private static Dictionary<(string Group, string Operation), long> Expected(TrainerRank rank)
    {
        var (layout, parallel) = (rank.Case, rank.Parallel);
        var result = new Dictionary<(string Group, string Operation), long>();
        void Add(ProcessGroup group, string operation, long sizeBytes) =>
            result[(group.Name, operation)] = result.GetValueOrDefault((group.Name, operation)) + sizeBytes;
        void AllReduce(ProcessGroup group, long sizeBytes, long times = 1) => Add(group, "all_reduce", times * (2L * (group.Size - 1) * sizeBytes / group.Size));
        void Part(ProcessGroup group, string operation, long sizeBytes, long times = 1) => Add(group, operation, times * (sizeBytes / group.Size * (group.Size - 1)));

        var numMicroBatches = TrainerCase.NumMicroBatches / layout.Replicas;
        var numTokens = (long)TrainerCase.RowTokens / layout.Context;
        var activation = numTokens * layout.Model.HiddenSize * sizeof(float);
        var numLayers = layout.Model.NumLayers / layout.Pipeline;
        var isRecomputed = layout.Recompute.Granularity == RecomputeGranularity.Full;
        var tp = parallel.TensorParallel;
        if (layout.SequenceParallel)
        {
            Part(tp, "all_gather", activation, numMicroBatches * (numLayers * (isRecomputed ? 8 : 6) + (parallel.IsFirstStage ? 1 : 0) + (parallel.IsLastStage ? 1 : 0)));
            Part(tp, "reduce_scatter", activation, numMicroBatches * (numLayers * (isRecomputed ? 6 : 4) + (parallel.IsFirstStage ? 1 : 0) + (parallel.IsLastStage ? 1 : 0)));
        }
        else AllReduce(tp, activation, numMicroBatches * (numLayers * (isRecomputed ? 6 : 4) + (parallel.IsFirstStage ? 1 : 0) + (parallel.IsLastStage ? 1 : 0)));
        if (parallel.IsLastStage) AllReduce(tp, numTokens * sizeof(float), 3 * numMicroBatches);

        // All heads of this rank's tokens, queries or keys; a gradient in fp32 is as large.
        var (cp, queries) = (parallel.ContextParallel, numTokens * layout.Model.NumAttentionHeads / tp.Size * layout.Model.KvChannels * sizeof(float));
        var keys = queries / layout.Model.NumAttentionHeads * layout.Model.NumQueryGroups;
        if (layout.Exchange == ContextExchange.Ring) Add(cp, "send", numMicroBatches * numLayers * (cp.Size - 1) * 3 * 2 * keys);
        else Part(cp, "all_to_all", 2 * (queries + keys), 2 * numMicroBatches * numLayers);

        var message = 16 + activation / (layout.SequenceParallel ? tp.Size : 1);
        var numVirtualStages = layout.Pipeline * layout.Chunks;
        for (var chunk = 0; chunk < layout.Chunks; chunk++)
        {
            var place = chunk * layout.Pipeline + parallel.PipelineParallel.Rank;
            if (place < numVirtualStages - 1) Add(parallel.PipelineParallel, "send", numMicroBatches * message);
            if (place > 0) Add(parallel.PipelineParallel, "send", numMicroBatches * message);
        }

        var flat = FlatLayout.Create(rank.Model.Parameters, parallel, layout.BucketElements);
        var isSharded = layout.Optimizer.UseDistributedOptimizer;
        foreach (var bucket in flat.Buckets)
        {
            if (isSharded)
            {
                Part(bucket.Replicas, "reduce_scatter", bucket.Range.Length * sizeof(float));
                Part(bucket.Replicas, "all_gather", bucket.Range.Length * sizeof(float));
            }
            else AllReduce(bucket.Replicas, bucket.Range.Length * sizeof(float));
        }
        long OwnElements(Func<ParameterTraits, bool> isChosen) => flat.Buckets.Sum(bucket => bucket.Entries
            .Where(entry => isChosen(entry.Parameter.Traits)).Sum(entry => entry.Range.Intersect(bucket.OwnedRange(isSharded)).Length));
        AllReduce(tp, OwnElements(traits => traits.IsSequenceParallel) * sizeof(float));
        AllReduce(parallel.Embedding, OwnElements(traits => traits.IsTied) * sizeof(float));
        AllReduce(parallel.World, sizeof(double)); // the norm
        return result;
    }

    private static ProcessGroup[] Groups(ParallelState parallel) =>
    [
        parallel.World, parallel.TensorParallel, parallel.PipelineParallel, parallel.DataParallel, parallel.DataContextParallel, parallel.ContextParallel,
        parallel.ExpertParallel, parallel.ExpertTensorParallel, parallel.ExpertDataParallel, parallel.ModelParallel, parallel.Embedding,
    ];
}
