using System.Globalization;

namespace Megatron.Client.Jobs;

/// <summary>
/// The last line of a terminal during a run: a bar, the iteration and the time that is left. It is cleared before any other line is written
/// and drawn again after the next step. On a pipe it is not used.
/// </summary>
/// <param name="output">The terminal.</param>
/// <param name="columns">Its width in characters.</param>
public sealed class ProgressLine(TextWriter output, int columns)
{
    private const string Clear = "\r\e[2K";
    private const int BarWidth = 30;
    private const double Smoothing = 0.1; // weight of the newest step in the mean step time

    private double secondsPerStep;
    private bool isShown;

    /// <summary>Shows that a step is done.</summary>
    public void Show(long iteration, long trainIterations, TimeSpan stepTime, double loss)
    {
        secondsPerStep = secondsPerStep == 0 ? stepTime.TotalSeconds : secondsPerStep + Smoothing * (stepTime.TotalSeconds - secondsPerStep);
        var text = Text(iteration, trainIterations, secondsPerStep, loss);
        output.Write(Clear + (text.Length < columns ? text : text[..Math.Max(0, columns - 1)]));
        output.Flush();
        isShown = true;
    }

    /// <summary>Takes the line away so that another can be written.</summary>
    public void Hide()
    {
        if (!isShown) return;
        output.Write(Clear);
        isShown = false;
    }

    /// <summary>The line: <c>[#####-----]  50/200  25 %  0.15 s/it  0:23 left  loss 5.9582</c>.</summary>
    public static string Text(long iteration, long trainIterations, double secondsPerStep, double loss)
    {
        var done = trainIterations == 0 ? 1 : (double)iteration / trainIterations;
        var filled = (int)(done * BarWidth);
        return string.Create(CultureInfo.InvariantCulture,
            $"[{new string('#', filled)}{new string('-', BarWidth - filled)}] {iteration}/{trainIterations} {done * 100:0} %  {secondsPerStep:0.00} s/it  " +
            $"{Duration(TimeSpan.FromSeconds(secondsPerStep * (trainIterations - iteration)))} left  loss {loss:0.0000}");
    }

    private static string Duration(TimeSpan time) => time.TotalHours >= 1
        ? string.Create(CultureInfo.InvariantCulture, $"{(long)time.TotalHours}:{time.Minutes:00}:{time.Seconds:00}")
        : string.Create(CultureInfo.InvariantCulture, $"{time.Minutes}:{time.Seconds:00}");
}
