using Megatron.Compute.Checkpointing;
using Megatron.Compute.Ops;
using Megatron.Compute.Optimizers;
using Megatron.Testing;
using static TorchSharp.torch;

namespace Megatron.Compute.Tests.Checkpointing;

public sealed class StateSliceTests
{
    /// <summary>q, k and v of two heads in one matrix, as rank 1 of TP 2 holds them.</summary>
    private static Parameter FusedQkv(Tensor data) => new("qkv", data,
        [new("q", [8, 3], [4, 0], [4, 3], 0), new("k", [4, 3], [2, 0], [2, 3], 12), new("v", [4, 3], [2, 0], [2, 3], 18)], new ParameterTraits { Decays = true });

    [Theory]
    [InlineData(0, 24, "q[0,12) k[0,6) v[0,6)")]
    [InlineData(5, 14, "q[5,12) k[0,2)")]
    [InlineData(12, 18, "k[0,6)")]
    [InlineData(13, 24, "k[1,6) v[0,6)")]
    [InlineData(7, 7, "")]
    public void Cut_RangeOfAFusedParameter_FollowsItsBlocks(long begin, long end, string expected)
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var parameter = FusedQkv(zeros(8, 3));
        var values = arange(begin, end, dtype: float32);
        var slices = StateSlice.Cut(parameter.Blocks, StateKind.Master, begin, values).ToList();
        Assert.Equal(expected, string.Join(' ', slices.Select(slice => $"{slice.Block.Name}[{slice.Begin},{slice.End})")));
        foreach (var slice in slices)
            Assert.True(slice.Values.Equals(arange(slice.Block.FlatOffset + slice.Begin, slice.Block.FlatOffset + slice.End, dtype: float32)));
    }

    [Fact]
    public void OfOptimizer_AdamSgdAndTiedDuplicate_GiveTheirKinds()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var parameter = FusedQkv(zeros(8, 3));
        using var duplicate = new Parameter("tied", zeros(2), [TensorBlock.Whole("embed", 2)], new ParameterTraits { Decays = true, IsSharedDuplicate = true });
        var adam = StateSlice.OfOptimizer([new(parameter, new FlatRange(10, 20), zeros(10), zeros(10), zeros(10)), new(duplicate, new FlatRange(0, 2), zeros(2), zeros(2), zeros(2))], withDuplicates: false);
        Assert.Equal(9, adam.Count);
        Assert.Equal([StateKind.Master, StateKind.ExpAvg, StateKind.ExpAvgSq], adam.Select(slice => slice.Kind).Distinct());
        Assert.Equal(30 * sizeof(float), CheckpointWriter.StateBytes(adam));
        var sgd = StateSlice.OfOptimizer([new(parameter, new FlatRange(0, 24), zeros(24), zeros(24), null)], withDuplicates: false);
        Assert.Equal([StateKind.Master, StateKind.Momentum], sgd.Select(slice => slice.Kind).Distinct());
        Assert.Equal(["q", "k", "v"], WeightBlock.OfParameters([parameter, duplicate], withDuplicates: false).Select(weight => weight.Block.Name));
    }

    [Fact]
    public void SaveAndLoad_FusedParameterOfTwoRanks_LoadsWholeOnOneRank()
    {
        using var leaks = LeakCheck.Start();
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var store = new CheckpointStore(folder.Root, TimeProvider.System);
        var plan = HfShardPlan.Make([new("q", SafetensorsDType.F32, [8, 3]), new("k", SafetensorsDType.F32, [4, 3]), new("v", SafetensorsDType.F32, [4, 3])], 100);
        Assert.True(plan.IsSharded);
        var temporary = store.BeginSave(1, "a", 1000);
        var parts = Enumerable.Range(0, 2).Select(rank =>
        {
            using var parameter = new Parameter("qkv", arange(0, 24, dtype: float32).add(100 * rank).view(8, 3),
                [new("q", [8, 3], [4 * rank, 0], [4, 3], 0), new("k", [4, 3], [2 * rank, 0], [2, 3], 12), new("v", [4, 3], [2 * rank, 0], [2, 3], 18)], new ParameterTraits { Decays = true });
            return CheckpointWriter.WriteRank(temporary, rank, new RankContent
            {
                ModelPlan = plan,
                Weights = WeightBlock.OfParameters([parameter], withDuplicates: false),
                State = StateSlice.OfOptimizer([new(parameter, new FlatRange(0, 24), parameter.Data.view(-1), zeros(24), zeros(24))], withDuplicates: false),
                SideFiles = rank == 0 ? new HfSideFiles { Config = "{}"u8.ToArray() } : null,
            });
        }).ToList();
        using var reader = new CheckpointReader(store.Commit("a", CheckpointSample.Facts(1), parts));
        var whole = zeros(48);
        TensorBlock[] blocks = [new("q", [8, 3], [0, 0], [8, 3], 0), new("k", [4, 3], [0, 0], [4, 3], 24), new("v", [4, 3], [0, 0], [4, 3], 36)];
        reader.LoadState([.. StateSlice.Cut(blocks, StateKind.Master, 0, whole)]);
        var first = arange(0, 24, dtype: float32);
        var second = first.add(100);
        var expected = cat([first[..12], second[..12], first[12..18], second[12..18], first[18..], second[18..]]);
        Assert.True(whole.Equals(expected));
        var weights = zeros(48);
        reader.LoadWeights([.. blocks.Select(block => new WeightBlock(block, weights.narrow(0, block.FlatOffset, block.NumElements)))]);
        Assert.True(weights.Equals(expected));
        Assert.Equal(2, Directory.GetFiles(reader.Folder, "model-*.safetensors").Length);
    }
}
