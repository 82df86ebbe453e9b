using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;

namespace Megatron.Compute.Tests.Distributed;

public sealed class ParallelDimsTests
{
    private static readonly GroupKind[] AllKinds = Enum.GetValues<GroupKind>();

    [Fact]
    public void MembersOf_16Ranks_FollowsOrderTpCpDpPp()
    {
        // The worked example of numerics 3.12: tp fastest, then cp, dp, pp slowest.
        var dims = new ParallelDims(16, 2, 2, 2, 1, null);
        Assert.Equal(2, dims.DataParallelSize);
        Assert.Equal([0, 1], dims.MembersOf(GroupKind.TensorParallel, 0));
        Assert.Equal([4, 6], dims.MembersOf(GroupKind.ContextParallel, 6));
        Assert.Equal([1, 5], dims.MembersOf(GroupKind.DataParallel, 5));
        Assert.Equal([1, 3, 5, 7], dims.MembersOf(GroupKind.DataContextParallel, 3));
        Assert.Equal([3, 11], dims.MembersOf(GroupKind.PipelineParallel, 11));
        Assert.Equal([2, 3, 10, 11], dims.MembersOf(GroupKind.ModelParallel, 10));
        Assert.Equal(new DenseCoordinates(1, 0, 1, 1), dims.DenseOf(13));
    }

    [Fact]
    public void MembersOf_ExpertGrid_LiesOverTheSameRanks()
    {
        var dims = new ParallelDims(16, 2, 2, 1, 4, 1);
        Assert.Equal((1, 2, 4), (dims.ExpertTensorParallelSize, dims.ExpertDataParallelSize, dims.DataParallelSize));
        Assert.Equal([4, 5, 6, 7], dims.MembersOf(GroupKind.ExpertParallel, 5));
        Assert.Equal([1, 5], dims.MembersOf(GroupKind.ExpertDataParallel, 5));
        Assert.Equal([5], dims.MembersOf(GroupKind.ExpertTensorParallel, 5));
        Assert.Equal([0, 8], dims.MembersOf(GroupKind.PipelineParallel, 8));
        Assert.Equal(new ExpertCoordinates(0, 1, 1, 0), dims.ExpertOf(5));
    }

    [Fact]
    public void Constructor_ExpertTensorSizeNotGiven_FollowsTensorSize()
    {
        var dims = new ParallelDims(8, 2, 1, 1, 2, null);
        Assert.Equal((2, 2), (dims.ExpertTensorParallelSize, dims.ExpertDataParallelSize));
        Assert.Equal([0, 2], dims.MembersOf(GroupKind.ExpertParallel, 0));
    }

    [Theory]
    [InlineData(1, new[] { 0 })]
    [InlineData(2, new[] { 0, 4 })]
    [InlineData(4, new[] { 0, 6 })]
    public void MembersOf_Embedding_HoldsFirstAndLastStage(int pipelineParallelSize, int[] expected)
    {
        var dims = new ParallelDims(8, 2, pipelineParallelSize, 1, 1, null);
        Assert.Equal(expected, dims.MembersOf(GroupKind.Embedding, 0));
        if (pipelineParallelSize == 4) Assert.Equal([3], dims.MembersOf(GroupKind.Embedding, 3));
    }

    [Fact]
    public void AllGroups_EveryGridUpTo32Ranks_PartitionTheRanks()
    {
        foreach (var dims in ValidGrids(32))
            foreach (var kind in AllKinds)
            {
                var groups = dims.AllGroups(kind);
                Assert.Equal(Enumerable.Range(0, dims.WorldSize), groups.SelectMany(group => group).Order());
                Assert.All(groups, group => Assert.Equal(group.Order(), group));
            }
    }

    [Fact]
    public void MembersOf_EveryGridUpTo32Ranks_HasTheSizesOfTheGrid()
    {
        foreach (var dims in ValidGrids(32))
        {
            var last = dims.WorldSize - 1;
            int Size(GroupKind kind) => dims.MembersOf(kind, last).Count;
            Assert.Equal(dims.TensorParallelSize, Size(GroupKind.TensorParallel));
            Assert.Equal(dims.ContextParallelSize, Size(GroupKind.ContextParallel));
            Assert.Equal(dims.DataParallelSize, Size(GroupKind.DataParallel));
            Assert.Equal(dims.DataParallelSize * dims.ContextParallelSize, Size(GroupKind.DataContextParallel));
            Assert.Equal(dims.PipelineParallelSize, Size(GroupKind.PipelineParallel));
            Assert.Equal(dims.TensorParallelSize * dims.PipelineParallelSize, Size(GroupKind.ModelParallel));
            Assert.Equal(dims.ExpertParallelSize, Size(GroupKind.ExpertParallel));
            Assert.Equal(dims.ExpertDataParallelSize, Size(GroupKind.ExpertDataParallel));
            for (var rank = 0; rank < dims.WorldSize; rank++) Assert.Equal(dims.DenseOf(rank).Pp, dims.ExpertOf(rank).Pp);
        }
    }

    [Theory]
    [InlineData(8, 3, 1, 1, 1, null, "tensor_model_parallel_size 3", "tensor_model_parallel_size from 1, 2, 4, 8")]
    [InlineData(8, 2, 3, 1, 1, null, "pipeline_model_parallel_size 3", "pipeline_model_parallel_size from 1, 2, 4")]
    [InlineData(6, 2, 1, 2, 1, null, "context_parallel_size 2", "context_parallel_size from 1, 3")]
    [InlineData(4, 2, 2, 2, 1, null, "= 8 does not divide the 4 ranks", "start a multiple of 8 ranks")]
    [InlineData(8, 2, 1, 1, 3, null, "expert_model_parallel_size 3", "expert_model_parallel_size from 1, 2, 4")]
    [InlineData(8, 1, 1, 1, 2, 8, "expert_tensor_parallel_size 8", "expert_tensor_parallel_size from 1, 2, 4")]
    [InlineData(0, 1, 1, 1, 1, null, "number of ranks (NPROC_PER_NODE x NNODES) = 0", "1 or more")]
    [InlineData(8, -1, 1, 1, 1, null, "tensor_model_parallel_size = -1", "1 or more")]
    [InlineData(8, 1, 0, 1, 1, null, "pipeline_model_parallel_size = 0", "1 or more")]
    [InlineData(8, 1, 1, 0, 1, null, "context_parallel_size = 0", "1 or more")]
    [InlineData(8, 1, 1, 1, 0, null, "expert_model_parallel_size = 0", "1 or more")]
    [InlineData(8, 1, 1, 1, 1, 0, "expert_tensor_parallel_size = 0", "1 or more")]
    public void Check_ImpossibleGrid_NamesValueAndRemedy(int world, int tp, int pp, int cp, int ep, int? etp, string value, string remedy)
    {
        var error = Assert.Single(ParallelDims.Check(world, tp, pp, cp, ep, etp));
        Assert.Contains(value, error.Message);
        Assert.Contains(remedy, error.Message);
        Assert.Throws<ConfigException>(() => new ParallelDims(world, tp, pp, cp, ep, etp));
    }

    [Fact]
    public void Check_SeveralProblems_ReportsAllAtOnce()
    {
        Assert.Equal(3, ParallelDims.Check(8, 0, -2, 0, 1, null).Count);
        Assert.Equal(2, ParallelDims.Check(8, 3, 1, 1, 3, null).Count);
    }

    private static IEnumerable<ParallelDims> ValidGrids(int worldSize)
    {
        int[] degrees = [1, 2, 4];
        foreach (var tp in degrees)
            foreach (var pp in degrees)
                foreach (var cp in degrees)
                    foreach (var ep in degrees)
                        if (ParallelDims.Check(worldSize, tp, pp, cp, ep, null).Count == 0) yield return new ParallelDims(worldSize, tp, pp, cp, ep, null);
    }
}
