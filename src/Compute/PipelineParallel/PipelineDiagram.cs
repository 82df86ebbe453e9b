using System.Globalization;
using System.Text;

namespace Megatron.Compute.PipelineParallel;

/// <summary>A schedule drawn in text, one line for each stage, time from left to right; forward and both halves of a backward take one unit each.</summary>
public static class PipelineDiagram
{
    private const int MaxColumns = 150;

    /// <summary>
    /// The drawing, headed by the share of idle time and what the stages save. <c>F3</c> is the forward of micro-batch 3, <c>B3</c> the
    /// input-gradient half of its backward, <c>W3</c> the weight-gradient half, a letter behind it the chunk, a dot an idle unit.
    /// </summary>
    /// <param name="numMicroBatches">Micro-batches of a step on one data-parallel rank.</param>
    /// <exception cref="ArgumentException">The schedule cannot run in this shape.</exception>
    public static IReadOnlyList<string> Draw(PipelineScheduleKind kind, PipelineShape shape, int numMicroBatches)
    {
        var stages = Enumerable.Range(0, shape.NumStages).Select(stage => PipelineSchedules.Build(kind, shape, stage, numMicroBatches)).ToArray();
        var timeline = PipelineTimeline.Of(stages, shape, PipelineCosts.Equal);
        var peaks = ScheduleValidator.Check(stages, shape, numMicroBatches, isForwardOnly: false).PeakSavedActivations;
        var cellWidth = 2 + $"{numMicroBatches - 1}".Length + (shape.NumChunks > 1 ? 1 : 0);
        return
        [
            string.Create(CultureInfo.InvariantCulture, $"pipeline: {shape.NumStages} stages{(shape.NumChunks > 1 ? $" of {shape.NumChunks} chunks" : "")}, {numMicroBatches} micro-batches, bubble " +
                $"{100 * timeline.BubbleFraction:F1} % of {timeline.Length} units; activations saved at most, in micro-batches of a {(shape.NumChunks > 1 ? "chunk" : "stage")}: {string.Join(", ", peaks)}"),
            .. timeline.Stages.Select((actions, stage) => $"  stage {stage,-2} {Line(actions, timeline.Length, cellWidth, shape)}"),
        ];
    }

    private static string Line(IReadOnlyList<TimedAction> actions, int length, int cellWidth, PipelineShape shape)
    {
        var cells = Enumerable.Repeat(".", length).ToArray();
        foreach (var (action, begin, _) in actions)
        {
            var kind = action.Kind switch
            {
                PipelineActionKind.Forward => 'F',
                PipelineActionKind.BackwardInput => 'B',
                _ => 'W',
            };
            cells[begin] = string.Create(CultureInfo.InvariantCulture, $"{kind}{action.MicroBatch}{(shape.NumChunks > 1 ? $"{(char)('a' + action.Chunk % 26)}" : "")}");
        }
        var text = new StringBuilder();
        var maxCells = MaxColumns / cellWidth;
        for (var i = 0; i < length; i++)
        {
            // A long step shows how it fills and how it drains.
            if (length > maxCells && i == 2 * maxCells / 3)
            {
                text.Append("... ");
                i = length - maxCells / 3;
            }
            text.Append(cells[i].PadRight(cellWidth));
        }
        return text.ToString().TrimEnd();
    }
}
