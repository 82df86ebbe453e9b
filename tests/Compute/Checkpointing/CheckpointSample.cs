using Megatron.Compute.Checkpointing;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Checkpointing;

/// <summary>A small model's state with known values, saved in a random layout: value = 1000 · tensor + 0.25 · kind + flat index / 4096.</summary>
internal static class CheckpointSample
{
    public static readonly (string Name, long[] Shape)[] Tensors =
        [("model.embed.weight", [12, 4]), ("model.layers.0.o_proj.weight", [4, 6]), ("model.norm.weight", [4]), ("scalar", []), ("experts.weight", [3, 2, 5])];

    public static readonly StateKind[] Kinds = [StateKind.Master, StateKind.ExpAvg, StateKind.ExpAvgSq];

    /// <summary>The values of a range, computed without the code under test.</summary>
    public static Tensor Values(int tensorIndex, int kind, BlockRange range) => tensor(
        RandomLayout.Enumerate(range, Tensors[tensorIndex].Shape).Select(index => 1000f * tensorIndex + 0.25f * kind + index / 4096f).ToArray(), dtype: float32);

    public static HfShardPlan Plan(long shardBytesMax = 1000) =>
        HfShardPlan.Make([.. Tensors.Select(tensor => new SafetensorsSpec(tensor.Name, SafetensorsDType.BF16, tensor.Shape))], shardBytesMax);

    public static RunFacts Facts(long iteration, int attempt = 1, string jobId = "job") => new()
    {
        JobId = jobId,
        Attempt = attempt,
        ModelConfig = new Dictionary<string, string> { ["hiddenSize"] = "4", ["numLayers"] = "1" },
        TokenizerHash = null,
        Layout = CheckpointLayout.SingleRank,
        GlobalBatchSize = 8,
        MicroBatchSize = 2,
        Optimizer = new Dictionary<string, string> { ["kind"] = "adam" },
        Schedule = new Dictionary<string, string> { ["lr"] = "0.001" },
        Trainer = new TrainerState
        {
            Iteration = iteration, ConsumedSamples = iteration * 8, OptimizerSteps = iteration - 1, SkippedIterations = 1, NanIterations = 0,
            LossScaler = new(65536, 3, 2), Seed = ulong.MaxValue, Data = new DataCursor(iteration, 0xfedcba9876543210),
        },
    };

    /// <summary>State slices and weight blocks of each rank: every tensor in its own random layout.</summary>
    public static List<RankContent> Contents(int ranks, Random random, bool withState = true)
    {
        var state = Enumerable.Range(0, ranks).Select(_ => new List<StateSlice>()).ToList();
        var weights = Enumerable.Range(0, ranks).Select(_ => new List<WeightBlock>()).ToList();
        for (var t = 0; t < Tensors.Length; t++)
        {
            var (name, shape) = Tensors[t];
            var cut = RandomLayout.Cut(shape, random);
            if (withState)
                for (var kind = 0; kind < Kinds.Length; kind++)
                    foreach (var range in cut)
                        state[random.Next(ranks)].Add(new StateSlice(new TensorBlock(name, shape, range.Offset, range.Shape, 0), Kinds[kind], range.Begin, range.End, Values(t, kind, range)));
            foreach (var block in cut.Select(range => (range.Offset, range.Shape)).DistinctBy(block => string.Join(',', block.Offset)))
                weights[random.Next(ranks)].Add(new WeightBlock(new TensorBlock(name, shape, block.Offset, block.Shape, 0), Values(t, 3, BlockRange.Whole(block.Offset, block.Shape))));
        }
        return [.. Enumerable.Range(0, ranks).Select(rank => new RankContent
        {
            ModelPlan = Plan(),
            Weights = weights[rank],
            State = state[rank],
            SideFiles = rank == 0 ? new HfSideFiles { Config = "{}"u8.ToArray(), Args = "{}"u8.ToArray() } : null,
        })];
    }

    /// <summary>Saves and commits one checkpoint.</summary>
    public static StoredCheckpoint Save(CheckpointStore store, long iteration, int ranks = 1, int seed = 1, int attempt = 1, bool withState = true, string? saveId = null)
    {
        using var scope = NewDisposeScope();
        saveId ??= $"s{iteration}";
        var contents = Contents(ranks, new Random(seed), withState);
        var folder = store.BeginSave(attempt, saveId, 10_000);
        var parts = contents.Select((content, rank) => CheckpointWriter.WriteRank(folder, rank, content)).ToList();
        parts.Reverse();
        return store.Commit(saveId, Facts(iteration, attempt), parts);
    }

    /// <summary>Loads everything in another random layout and compares every element.</summary>
    public static void AssertLoads(StoredCheckpoint checkpoint, Random random)
    {
        using var scope = NewDisposeScope();
        using var reader = new CheckpointReader(checkpoint);
        for (var t = 0; t < Tensors.Length; t++)
        {
            var (name, shape) = Tensors[t];
            foreach (var range in RandomLayout.Cut(shape, random))
            {
                var block = new TensorBlock(name, shape, range.Offset, range.Shape, 0);
                for (var kind = 0; kind < Kinds.Length; kind++)
                {
                    var slice = new StateSlice(block, Kinds[kind], range.Begin, range.End, full(range.Count, float.NaN));
                    reader.LoadState([slice]);
                    Xunit.Assert.True(slice.Values.Equals(Values(t, kind, range)), $"{name} {Kinds[kind]}");
                }
                var whole = BlockRange.Whole(range.Offset, range.Shape);
                var weight = zeros(whole.Count, dtype: ScalarType.BFloat16);
                reader.LoadWeights([new WeightBlock(block, weight)]);
                Xunit.Assert.True(weight.Equals(Values(t, 3, whole).to(ScalarType.BFloat16)), name);
            }
        }
    }
}
