namespace Megatron.Compute.Configuration;

// Options: reports on data (megatron data).
public sealed partial record TrainingConfig
{
    [Option("report_path", "HTML file of the report, with its picture beside it as PNG.", OptionSection.Report)]
    public string? ReportPath { get; init; }

    [Option("show_samples", "Samples that are shown with their masks.", OptionSection.Report)]
    public int ShowSamples { get; init; } = 3;
}
