using Megatron.Compute.Models;
using Megatron.Compute.PipelineParallel;

namespace Megatron.Compute.Tests.PipelineParallel;

public sealed class PipelinePartitionTests
{
    [Fact]
    public void LayoutOf_EveryShape_CoversTheModelInTheOrderOfTheActivations()
    {
        foreach (var (numLayers, stages, chunks, first, last) in ((int, int, int, int?, int?)[])
            [(12, 1, 1, null, null), (12, 4, 1, null, null), (16, 4, 2, null, null), (24, 2, 4, null, null), (9, 4, 1, 2, 1), (10, 4, 1, null, 1), (16, 4, 2, 2, 6), (5, 2, 1, 2, 3)])
        {
            var partition = new PipelinePartition(numLayers, new PipelineShape(stages, chunks), first, last);
            var next = 0;
            for (var chunk = 0; chunk < chunks; chunk++)
                for (var stage = 0; stage < stages; stage++)
                {
                    var layout = partition.LayoutOf(stage, chunk);
                    Assert.Equal(next, layout.FirstLayer);
                    Assert.Equal(stage == 0 && chunk == 0, layout.HasEmbedding);
                    Assert.Equal(stage == stages - 1 && chunk == chunks - 1, layout.HasHead);
                    next = layout.EndLayer;
                }
            Assert.Equal(numLayers, next);
        }
    }

    [Fact]
    public void LayoutOf_Uniform_FollowsTheFormula()
    {
        // Chunk v of stage p begins at v·(L/vp) + p·(L/(pp·vp)).
        var partition = new PipelinePartition(24, new PipelineShape(4, 3), null, null);
        for (var chunk = 0; chunk < 3; chunk++)
            for (var stage = 0; stage < 4; stage++)
                Assert.Equal(chunk * 8 + stage * 2, partition.LayoutOf(stage, chunk).FirstLayer);
    }

    [Fact]
    public void LayoutsOf_UnevenFirstAndLastStage_GiveThemTheirNumbers()
    {
        var partition = new PipelinePartition(9, new PipelineShape(4, 1), 1, 2);
        Assert.Equal([(0, 1), (1, 4), (4, 7), (7, 9)], Enumerable.Range(0, 4).Select(stage => partition.LayoutsOf(stage)[0]).Select(layout => (layout.FirstLayer, layout.EndLayer)));
    }

    [Theory]
    [InlineData(10, 4, 1, null, null)]
    [InlineData(12, 4, 2, null, null)]
    [InlineData(8, 2, 1, 3, 4)]
    [InlineData(8, 4, 1, 4, 4)]
    public void Constructor_LayersThatDoNotDivide_Throws(int numLayers, int stages, int chunks, int? first, int? last) =>
        Assert.Throws<InvalidOperationException>(() => new PipelinePartition(numLayers, new PipelineShape(stages, chunks), first, last));

    [Fact]
    public void LayoutOf_OneStage_IsTheWholeModel() =>
        Assert.Equal(new StageLayout(0, 7, HasEmbedding: true, HasHead: true), new PipelinePartition(7, new PipelineShape(1, 1), null, null).LayoutOf(0, 0));
}
